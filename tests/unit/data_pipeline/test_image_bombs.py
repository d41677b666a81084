"""Images of few bytes that would keep a decoder busy for minutes are refused by a look at their structure."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from data_pipeline.decode import DecodeError, errors, probe

SIDE = 64


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (90, 30, 60)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_size(payload: bytes, *, frame: bytes, side: int) -> bytes:
    at = payload.index(frame) + 5
    return payload[:at] + struct.pack(">HH", side, side) + payload[at + 4 :]


def png(extra: bytes = b"") -> bytes:
    rows = zlib.compress((b"\0" + b"\x80" * 3 * SIDE) * SIDE)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_of_many_packed_chunks_is_refused(kind: bytes) -> None:
    packed = chunk(kind, b"k\0\0" + zlib.compress(bytes(900_000), 9))
    with pytest.raises(DecodeError, match="limit: a PNG of more than 64 packed"):
        probe(png(packed * 65))


def test_a_png_of_very_many_chunks_is_refused_and_one_of_some_is_not() -> None:
    with pytest.raises(DecodeError, match="limit"):
        probe(png(chunk(b"tEXt", b"k\0v") * 100_001))
    assert probe(png(chunk(b"tEXt", b"k\0v") * 1000)).width == SIDE


def test_a_progressive_jpeg_of_very_many_scans_is_refused() -> None:
    payload = jpeg(progressive=True)
    scan = payload[payload.rindex(b"\xff\xda") : -2]
    with pytest.raises(DecodeError, match=r"limit: .* scans, more than 256"):
        probe(payload[:-2] + scan * 300 + b"\xff\xd9")
    assert probe(payload[:-2] + scan * 50 + b"\xff\xd9").progressive


@pytest.mark.parametrize(("progressive", "frame"), [(False, b"\xff\xc0"), (True, b"\xff\xc2")])
def test_a_jpeg_with_fewer_bits_than_blocks_is_refused_before_its_pixels_are_allocated(
    progressive: bool, frame: bytes
) -> None:
    payload = jpeg(progressive=progressive)
    with pytest.raises(DecodeError, match=r"truncated: .* bytes cannot hold 9000×9000 pixels"):
        probe(with_size(payload, frame=frame, side=9000))
    assert probe(with_size(payload, frame=frame, side=256)).width == 256, "cut short, and not refused"


def test_the_smallest_jpeg_of_one_colour_is_not_taken_for_cut_short() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4096, 4096)).save(buffer, "JPEG", quality=1, optimize=True, progressive=True)
    assert probe(buffer.getvalue()).width == 4096


def test_junk_without_end_between_two_markers_is_refused() -> None:
    payload = jpeg()
    for junk in (b"\xff", b"\xff\0", b"\0"):
        with pytest.raises(DecodeError, match="junk"):
            probe(payload[:2] + b"\xff" + junk * (2 << 20) + payload[2:])
    assert probe(payload[:2] + b"\xff" * 1000 + payload[2:]).width == SIDE


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_is_refused_by_its_first_bytes_before_its_canvas_is_allocated(
    lossless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, 48)).save(buffer, "WEBP", lossless=lossless)
    monkeypatch.setattr(errors, "MAX_PIXELS", SIDE * 48)
    assert probe(buffer.getvalue()).height == 48
    monkeypatch.setattr(errors, "MAX_PIXELS", SIDE * 48 - 1)
    with pytest.raises(DecodeError, match=f"limit: {SIDE}×48 pixels"):
        probe(buffer.getvalue()[:30])
