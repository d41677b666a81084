"""The kernel's pixels against Pillow's: equal before the resize, at least 45 dB after it, on both paths."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.decode import backend_name, decode_batch, decode_image, kernel
from data_pipeline.decode.errors import MAX_PIXELS
from data_pipeline.decode.kernel import Status

needs_kernel = pytest.mark.skipif(not kernel.is_available(), reason=f"no C kernel: {kernel.describe()}")
MIN_PSNR = 45.0
WHOLE_TURN = 8  # EXIF orientations


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Draw smooth colours, hard saturated edges and noise: what resampling and chroma care about."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    phases = generator.uniform(0, 6, 3)
    waves = [np.sin(rows / 17 + phase) * np.cos(columns / (11 + phase)) for phase in phases]
    field = 128 + 90 * np.stack(waves, axis=-1) + generator.normal(0, 5, (height, width, 1))
    field[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 0)
    field[height // 2 :, width // 2 : width // 2 + 3] = (255, 255, 255)
    return Image.fromarray(field.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def decode_one(
    payload: bytes, box: tuple[int, ...], size: tuple[int, int], *, flip: bool = False, **options: Any
) -> np.ndarray:
    out = np.zeros((1, size[1], size[0], 3), np.uint8)
    verdicts = decode_batch([payload], np.array([box]), np.array([flip]), out, **options)
    assert verdicts == [None]
    return out[0]


def reference(
    payload: bytes, box: tuple[int, ...], size: tuple[int, int], *, flip: bool = False
) -> np.ndarray:
    image = Image.open(io.BytesIO(payload)).convert("RGB").crop(box).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)[:, ::-1] if flip else np.asarray(image)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.square(first.astype(float) - second.astype(float)).mean()
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@st.composite
def jpegs_and_boxes(draw: st.DrawFn) -> tuple[bytes, tuple[int, int, int, int]]:
    width, height = draw(st.integers(5, 150)), draw(st.integers(1, 120))
    image = picture(width, height, seed=draw(st.integers(0, 50)))
    if draw(st.integers(0, 4)) == 0:
        image = image.convert("L")
    payload = jpeg(
        image,
        quality=draw(st.sampled_from([5, 50, 75, 92, 100])),
        subsampling=draw(st.sampled_from([0, 1, 2])),
        optimize=draw(st.booleans()),
        restart_marker_blocks=draw(st.sampled_from([0, 0, 1, 3, 7])),
    )
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return payload, (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))


@needs_kernel
@settings(max_examples=50, deadline=None)
@given(jpegs_and_boxes())
def test_a_regions_pixels_are_libjpegs_to_the_last_bit(case: tuple[bytes, tuple[int, int, int, int]]) -> None:
    payload, box = case
    size = (box[2] - box[0], box[3] - box[1])
    whole = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
    wanted = whole[box[1] : box[3], box[0] : box[2]]
    np.testing.assert_array_equal(decode_one(payload, box, size, backend="kernel"), wanted)


@needs_kernel
@pytest.mark.parametrize("left", [0, 5])
def test_chroma_halved_only_in_height_is_upsampled_as_libjpeg_does(left: int) -> None:
    """Pillow writes no 4:4:0, but 4:2:2's blocks, read with the factors swapped, are some."""
    payload = bytearray(jpeg(picture(16 * 5, 8 * 4), subsampling=1))
    frame = payload.index(b"\xff\xc0")
    payload[frame + 5 : frame + 9] = bytes([0, 16 * 4, 0, 8 * 5])
    assert payload[frame + 11] == 0x21
    payload[frame + 11] = 0x12
    whole = np.asarray(Image.open(io.BytesIO(payload)))
    found = decode_one(bytes(payload), (left, 3, 40, 61), (40 - left, 58), backend="kernel")
    np.testing.assert_array_equal(found, whole[3:61, left:40])


@needs_kernel
@settings(max_examples=25, deadline=None)
@given(jpegs_and_boxes(), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_avx2_and_the_plain_path_agree_to_the_last_bit(
    case: tuple[bytes, tuple[int, int, int, int]], width: int, height: int, flip: bool
) -> None:
    payload, box = case
    outs = []
    for allow_simd in (True, False):
        out = np.zeros((1, height, width, 3), np.uint8)
        boxes, flips = np.array([box], np.int32), np.array([flip], np.uint8)
        status = kernel._native.decode_batch(
            [payload], boxes, flips, out, height, width, True, MAX_PIXELS, allow_simd
        )
        assert list(status) == [Status.OK]
        outs.append(out)
    np.testing.assert_array_equal(*outs)


@needs_kernel
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, 500, 375), (131, 40, 377, 301), (300, 200, 340, 260), (7, 3, 480, 70)]
)
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_resized_crop_is_pillows_within_45_decibels(
    subsampling: int, box: tuple[int, int, int, int], flip: bool
) -> None:
    payload = jpeg(picture(500, 375), subsampling=subsampling)
    for size in ((224, 224), (97, 160)):
        found = decode_one(payload, box, size, flip=flip, backend="kernel")
        assert psnr(found, reference(payload, box, size, flip=flip)) >= MIN_PSNR


@needs_kernel
def test_bilinear_is_pillows_bilinear() -> None:
    payload, box = jpeg(picture(320, 240)), (10, 20, 300, 200)
    image = Image.open(io.BytesIO(payload)).crop(box).resize((96, 96), Image.Resampling.BILINEAR)
    found = decode_one(payload, box, (96, 96), interpolation="bilinear", backend="kernel")
    assert psnr(found, np.asarray(image)) >= MIN_PSNR


@needs_kernel
def test_nothing_is_written_beside_an_images_place() -> None:
    payload = jpeg(picture(100, 80))
    for width in (1, 7, 8, 9, 31, 33):
        out = np.full((3, 5, width, 3), 99, np.uint8)
        decode_batch([payload], np.array([[3, 4, 90, 71]]), np.array([False]), out[1:2], backend="kernel")
        assert (out[0] == 99).all() and (out[2] == 99).all()
        assert not (out[1] == 99).all()


@needs_kernel
def test_threads_at_once_give_the_pixels_of_one_after_the_other() -> None:
    payloads = [jpeg(picture(90 + 13 * i, 70 + 5 * i, seed=i), subsampling=i % 3) for i in range(12)]
    boxes, flips = np.array([[1, 2, 80 + 3 * i, 60] for i in range(12)]), np.arange(12) % 2 == 0

    def run(_: int) -> bytes:
        out = np.zeros((12, 32, 32, 3), np.uint8)
        assert decode_batch(payloads, boxes, flips, out) == [None] * 12
        return out.tobytes()

    alone = run(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(result == alone for result in pool.map(run, range(16)))


@pytest.mark.parametrize("backend", ["pillow", pytest.param("kernel", marks=needs_kernel)])
def test_odd_kinds_of_jpeg_are_decoded_whatever_the_backend(backend: str) -> None:
    image = picture(60, 40)
    for payload in (
        jpeg(image, progressive=True),
        jpeg(image.convert("CMYK")),
        jpeg(image.convert("L")),
        jpeg(picture(4, 9), subsampling=2),
        jpeg(picture(1, 1)),
        jpeg(image, keep_rgb=True),
    ):
        width, height = Image.open(io.BytesIO(payload)).size
        box = (0, 0, width, height)
        found = decode_one(payload, box, (width, height), backend=backend)
        np.testing.assert_array_equal(found, np.asarray(decode_image(payload)))


@pytest.mark.parametrize("turn", range(1, WHOLE_TURN + 1))
def test_orientation_is_ignored_unless_asked_for(turn: int) -> None:
    image, exif = picture(48, 32), Image.Exif()
    exif[0x0112] = turn
    payload = jpeg(image, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(payload)))
    np.testing.assert_array_equal(decode_one(payload, (0, 0, 48, 32), (48, 32)), stored)
    upright = np.asarray(decode_image(payload, orientation="apply"))
    height, width = upright.shape[:2]
    assert (width, height) == ((32, 48) if turn >= 5 else (48, 32))
    found = decode_one(payload, (0, 0, width, height), (width, height), orientation="apply")
    np.testing.assert_array_equal(found, upright)


def test_without_the_kernel_pillow_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_native", None)
    monkeypatch.setattr(kernel, "_why_missing", "No module named '_kernel'", raising=False)
    assert backend_name() == "pillow"
    payload = jpeg(picture(64, 64))
    found = decode_one(payload, (0, 0, 64, 64), (24, 24), flip=True)
    np.testing.assert_array_equal(found, reference(payload, (0, 0, 64, 64), (24, 24), flip=True))
    with pytest.raises(ValueError, match="'kernel', which is not built here: No module named"):
        backend_name("kernel")


def test_a_backend_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="backend is 'opencv'; allowed: auto, kernel, pillow"):
        backend_name("opencv")


def test_wrong_shapes_are_refused_before_anything_is_decoded() -> None:
    payload, flips = jpeg(picture(8, 8)), np.array([False])
    box = np.array([[0, 0, 8, 8]])
    with pytest.raises(ValueError, match="boxes are"):
        decode_batch([payload], box[0], flips, np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="out is"):
        decode_batch([payload], box, flips, np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="C-contiguous"):
        decode_batch([payload], box, flips, np.zeros((1, 4, 4, 6), np.uint8)[..., ::2])
