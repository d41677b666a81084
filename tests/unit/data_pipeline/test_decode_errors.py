"""Bad bytes: each is named, none is fatal to its neighbours, and none is paid for before it is refused."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import DecodeError, DecodeLimits, check_image, decode_batch, kernel, probe
from data_pipeline.decode.doctor import check

needs_kernel = pytest.mark.skipif(not kernel.is_available(), reason=f"no C kernel: {kernel.describe()}")


def encoded(
    kind: str = "JPEG", *, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object
) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def verdict(payload: bytes, *, box: tuple[int, ...] = (0, 0, 64, 48)) -> DecodeError | None:
    out = np.zeros((1, 16, 16, 3), np.uint8)
    return decode_batch([payload], np.array([box]), np.array([False]), out)[0]


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + bytes(20)
    )


def jpeg_of_size(width: int, height: int) -> bytes:
    payload = bytearray(encoded())
    frame = payload.index(b"\xff\xc0")
    payload[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(payload)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", "not_an_image"),
        (bytes(20_000), "not_an_image"),
        (b"<!DOCTYPE html><html>gone</html>", "not_an_image"),
        (b"\x1f\x8b" + bytes(100), "not_an_image"),
        (b"\n" + encoded(), "not_an_image"),
        (encoded()[:300], "truncated"),
        (encoded()[:-2000], "truncated"),
        (b"\xff\xd8\xff\xd9", "corrupt"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (jpeg_of_size(65500, 65500), "limit"),
        (png_of_size(100_000, 100_000), "limit"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(34), "limit"),
        (jpeg_of_size(0, 10), "corrupt"),
    ],
)
def test_bad_bytes_are_named(payload: bytes, kind: str) -> None:
    found = verdict(payload)
    assert found is not None and found.kind == kind and not found.usable, found


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for payload in (jpeg_of_size(65500, 65500), png_of_size(60_000, 60_000)):
        with pytest.raises(DecodeError, match="limit"):
            probe(payload)
        assert verdict(payload) is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes"


def test_limits_are_the_callers() -> None:
    with pytest.raises(DecodeError, match="64×48 pixels, more than 1,000"):
        probe(encoded(), limits=DecodeLimits(max_pixels=1000))
    with pytest.raises(DecodeError, match="bytes, more than 10"):
        probe(encoded(), limits=DecodeLimits(max_bytes=10))


def test_a_bad_image_leaves_its_neighbours_alone() -> None:
    good = encoded()
    out = np.zeros((3, 16, 16, 3), np.uint8)
    boxes = np.tile([0, 0, 64, 48], (3, 1))
    verdicts = decode_batch([good, b"nonsense", good], boxes, np.zeros(3, bool), out)
    assert [found and found.kind for found in verdicts] == [None, "not_an_image", None]
    np.testing.assert_array_equal(out[0], out[2])


@pytest.mark.parametrize("box", [(0, 0, 65, 48), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 40, 5, 49)])
def test_a_box_outside_the_image_is_an_error_of_the_box(box: tuple[int, ...]) -> None:
    found = verdict(encoded(), box=box)
    assert found is not None and found.kind == "box"


@needs_kernel
def test_a_flipped_bit_in_the_scan_is_damage_that_can_be_used() -> None:
    payload = bytearray(encoded(restart_marker_blocks=4))
    scan = payload.index(b"\xff\xda")
    kinds = set()
    for place in range(scan + 20, len(payload) - 2, 97):
        broken = bytearray(payload)
        broken[place] ^= 0x10
        found = check_image(bytes(broken))
        assert found is None or found.usable or found.kind in {"truncated", "corrupt"}
        kinds.add(found.kind if found else "unnoticed")
    assert "damaged" in kinds


@pytest.mark.parametrize(
    ("kind", "mode", "components"),
    [
        ("PNG", "RGBA", 4),
        ("PNG", "L", 1),
        ("WEBP", "RGB", 3),
        ("GIF", "P", 1),
        ("BMP", "RGB", 3),
        ("TIFF", "CMYK", 4),
    ],
)
def test_other_formats_are_known_by_their_content(kind: str, mode: str, components: int) -> None:
    payload = encoded(kind, mode=mode)
    info = probe(payload)
    assert (info.format, info.width, info.height, info.components) == (kind, 64, 48, components)
    assert verdict(payload) is None


def test_sixteen_bits_are_cut_to_the_upper_eight() -> None:
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    out = np.zeros((1, 48, 64, 3), np.uint8)
    assert decode_batch([stream.getvalue()], np.array([[0, 0, 64, 48]]), np.array([False]), out) == [None]
    np.testing.assert_array_equal(out[0, ..., 0], (levels >> 8).astype(np.uint8))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert probe(stream.getvalue()).animated
    out = np.zeros((1, 4, 4, 3), np.uint8)
    assert decode_batch([stream.getvalue()], np.array([[0, 0, 20, 20]]), np.array([False]), out) == [None]
    assert (out[0] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"progressive": True}, {"progressive": True}), ({"restart_marker_blocks": 5}, {"restart_interval": 5})],
)
def test_probing_reads_a_jpegs_header(options: dict[str, object], expected: dict[str, object]) -> None:
    info = probe(encoded(**options))
    assert {name: getattr(info, name) for name in expected} == expected


def test_the_doctor_names_the_backend_and_its_speed() -> None:
    (finding,) = check()
    assert finding["name"] == "decode" and finding["status"] in {"ok", "warn"}
    assert "images/s per core" in finding["detail"]


def test_the_doctor_says_what_to_do_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_native", None)
    monkeypatch.setattr(kernel, "_why_missing", "no such module", raising=False)
    (finding,) = check()
    assert finding["status"] == "warn" and "install a C compiler" in finding["detail"]


def test_the_kernels_numbers_are_those_of_its_header() -> None:
    header = (Path(kernel.__file__).parent / "csrc" / "jpeg.h").read_text()
    for status in kernel.Status:
        assert f"{status.name} = {status.value}" in header
