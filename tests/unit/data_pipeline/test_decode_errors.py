"""Bad bytes: each is named, none is fatal to its neighbours, and none is paid for before it is refused."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from data_pipeline.decode import (
    DecodeError,
    check_image,
    decode_batch,
    decode_image,
    errors,
    kernel,
    probe,
)
from data_pipeline.decode.doctor import check
from data_pipeline.record import Record
from data_pipeline.sharding.inspection import judge
from data_pipeline.sharding.options import ShardOptions

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


def test_more_pixels_or_bytes_than_are_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "MAX_PIXELS", 1000)
    with pytest.raises(DecodeError, match="64×48 pixels, more than 1,000"):
        probe(encoded())
    monkeypatch.setattr(errors, "MAX_BYTES", 10)
    with pytest.raises(DecodeError, match="bytes, more than 10"):
        probe(encoded())


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
        ("GIF", "P", 3),
        ("PNG", "P", 3),
        ("GIF", "L", 1),
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


def colour_of_sixteen_bits(kind: str) -> tuple[bytes, np.ndarray]:
    """Write colours of 16 bits by hand, which Pillow cannot; return the file and its upper eight bits."""
    levels = np.random.default_rng(2).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
    if kind == "PNG":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
        parts = [
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts), (levels >> 8).astype(np.uint8)
    pixels = levels.astype("<u2").tobytes()
    tags = [(256, 64), (257, 48), (259, 1), (262, 2), (273, 8), (277, 3), (278, 48), (279, len(pixels))]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    entries.insert(2, struct.pack("<HHII", 258, 3, 3, 8 + len(pixels)))
    bits = struct.pack("<HHH", 16, 16, 16)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels) + len(bits))
    return head + pixels + bits + directory, (levels >> 8).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colours_of_sixteen_bits_are_known_as_deep_and_cut_as_well(kind: str) -> None:
    payload, expected = colour_of_sixteen_bits(kind)
    assert (probe(payload).format, probe(payload).bits, probe(payload).components) == (kind, 16, 3)
    assert judge(payload, name="x", options=ShardOptions()).kinds == ["deep"]
    out = np.zeros((1, 48, 64, 3), np.uint8)
    assert decode_batch([payload], np.array([[0, 0, 64, 48]]), np.array([False]), out) == [None]
    np.testing.assert_array_equal(out[0], expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", [3, 6])
@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_other_formats_are_turned_when_asked_and_a_tiff_always(
    kind: str, turn: int, orientation: str
) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    exif = Image.Exif()
    exif[0x0112] = turn
    payload = encoded(kind, exif=exif)
    info = probe(payload)
    assert (info.width, info.height) == ((48, 64) if (kind, turn) == ("TIFF", 6) else (64, 48))
    assert info.orientation == (1 if kind == "TIFF" else turn)
    size = Record(payload, info.width, info.height, info.orientation, 0).displayed_size(orientation)
    stored = np.asarray(decode_image(encoded(kind)))
    is_turned = kind == "TIFF" or orientation == "apply"
    expected = np.rot90(stored, {3: 2, 6: -1}[turn]) if is_turned else stored
    out = np.zeros((1, size[1], size[0], 3), np.uint8)
    box = np.array([[0, 0, *size]])
    assert decode_batch([payload], box, np.array([False]), out, orientation=orientation) == [None]
    np.testing.assert_array_equal(out[0], expected)


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


def test_nothing_is_said_on_stderr_of_what_pillow_and_libtiff_find_odd(tmp_path: Path) -> None:
    packed, plain = encoded("TIFF", compression="tiff_lzw"), encoded("TIFF")
    bands = plain.index(struct.pack("<HHI", 277, 3, 1)) + 8
    exif = Image.Exif()
    exif[0x010E] = "a description that is cut"
    odd = {
        "libtiff": packed[:8] + bytes(200) + packed[208:],
        "logged": plain[:bands] + struct.pack("<H", 999) + plain[bands + 2 :],
        "warned": encoded("WEBP", exif=exif.tobytes()[:30]),
    }
    for name, payload in odd.items():
        (tmp_path / name).write_bytes(payload)
    code = (
        "import pathlib, sys; from data_pipeline.decode import check_image\n"
        "for path in sys.argv[1:]: print(check_image(pathlib.Path(path).read_bytes()))"
    )
    words = [sys.executable, "-c", code, *(str(tmp_path / name) for name in odd)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.count("corrupt") + done.stdout.count("not_an_image") == 2 and not done.stderr
