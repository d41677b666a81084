"""Tiled JPEGs: the same pixels for every decoder, restart markers at the tiles, no byte more on average."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from data_pipeline.decode import check_image, decode_batch, kernel, probe
from data_pipeline.decode.kernel import Status
from data_pipeline.tile import TILE_WIDTH, tile_jpeg

pytestmark = pytest.mark.skipif(not kernel.is_available(), reason=f"no C kernel: {kernel.describe()}")


def photograph(width: int, height: int, *, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 92, **options})
    return stream.getvalue()


def pixels(payload: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(payload)))


def rewritten(payload: bytes) -> bytes:
    tiled = tile_jpeg(payload)
    assert tiled is not None
    return tiled


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 200),
    subsampling=st.sampled_from([0, 1, 2]),
    gray=st.booleans(),
    restart=st.sampled_from([0, 2, 5]),
)
def test_any_decoder_sees_the_same_pixels(
    width: int, height: int, subsampling: int, gray: bool, restart: int
) -> None:
    image = photograph(width, height)
    payload = jpeg(
        image.convert("L") if gray else image, subsampling=subsampling, restart_marker_blocks=restart
    )
    tiled = rewritten(payload)
    np.testing.assert_array_equal(pixels(tiled), pixels(payload))
    assert check_image(tiled) is None
    assert rewritten(tiled) == tiled


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_region_of_a_tiled_jpeg_is_that_of_the_original(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(5, 500)), data.draw(st.integers(1, 200))
    payload = jpeg(photograph(width, height), subsampling=data.draw(st.sampled_from([0, 1, 2])))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = [left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))]
    out = np.zeros((2, 40, 40, 3), np.uint8)
    assert (
        decode_batch([payload, rewritten(payload)], np.array([box, box]), np.zeros(2, bool), out)
        == [None] * 2
    )
    np.testing.assert_array_equal(out[0], out[1])


def test_a_row_of_a_photograph_is_cut_into_equal_tiles() -> None:
    assert probe(rewritten(jpeg(photograph(500, 375)))).restart_interval == 8
    assert probe(rewritten(jpeg(photograph(640, 64)))).restart_interval == 8
    assert probe(rewritten(jpeg(photograph(640, 64), subsampling=0))).restart_interval == 16
    assert probe(rewritten(jpeg(photograph(60, 64)))).restart_interval == 4


def test_files_do_not_grow() -> None:
    payloads = [
        jpeg(photograph(500, 375, seed=seed), quality=quality) for seed in range(3) for quality in (75, 92)
    ]
    assert sum(len(rewritten(payload)) for payload in payloads) <= sum(map(len, payloads))


def test_segments_before_the_scan_are_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = jpeg(photograph(64, 64), exif=exif, icc_profile=b"a colour profile", comment=b"by hand")
    before, after = Image.open(io.BytesIO(payload)), Image.open(io.BytesIO(rewritten(payload)))
    assert after.getexif()[0x0112] == 6
    assert after.info["icc_profile"] == before.info["icc_profile"]
    assert after.info["comment"] == b"by hand"
    assert after.quantization == before.quantization  # type: ignore[attr-defined]


def test_what_cannot_be_tiled_is_told_by_its_kind() -> None:
    image = photograph(64, 64)
    kinds = {jpeg(image, progressive=True): Status.UNSUPPORTED, jpeg(image)[:-50]: Status.CORRUPT}
    for payload, kind in {**kinds, b"text": Status.UNSUPPORTED}.items():
        assert tile_jpeg(payload) is None and kernel.tile(payload, tile_width=TILE_WIDTH) is kind


def test_bytes_outside_a_crops_tiles_are_not_decoded() -> None:
    """The point of it: damage to the upper tiles is not even noticed by a crop of the lower ones."""
    tiled = bytearray(rewritten(jpeg(photograph(256, 256))))
    scan = tiled.index(b"\xff\xda")
    tiled[scan + 40] ^= 0x01
    tiled[scan + 41] ^= 0x80
    out = np.zeros((2, 16, 16, 3), np.uint8)
    boxes = np.array([[0, 0, 256, 256], [140, 140, 256, 256]])
    whole, lower = decode_batch([bytes(tiled)] * 2, boxes, np.zeros(2, bool), out)
    assert lower is None and (whole is None or whole.kind == "damaged")
