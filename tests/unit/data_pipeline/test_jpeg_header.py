"""A JPEG's header as the kernel and as Python read it: the same facts, or the kernel leaves it to Python."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import DecodeError, kernel
from data_pipeline.decode.jpeg_header import JpegHeader, is_jpeg, read_jpeg_header, walk_markers

needs_kernel = pytest.mark.skipif(not kernel.is_available(), reason=f"no C kernel: {kernel.describe()}")


def jpeg(*, orientation: int = 1, mode: str = "RGB", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new(mode, (40, 30), 3).save(buffer, "JPEG", exif=exif, **options)
    return buffer.getvalue()


def samples() -> list[bytes]:
    kinds = [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"restart_marker_blocks": 2}]
    return [jpeg(orientation=turn, **kind) for turn in (1, 6, 9) for kind in kinds]


def mutations(payload: bytes, *, count: int) -> list[bytes]:
    """Change, cut out or double a few bytes of the header."""
    draw = np.random.default_rng(len(payload))
    made = []
    for _ in range(count):
        changed = bytearray(payload)
        for _ in range(draw.integers(1, 4)):
            at, length = int(draw.integers(2, min(400, len(changed)))), int(draw.integers(1, 9))
            kind = draw.integers(4)
            if kind == 0:
                changed[at] = int(draw.integers(256))
            elif kind == 1:
                changed[at] = int(draw.choice([0x00, 0x01, 0xFF, 0xC0, 0xC4, 0xD9, 0xDA, 0xDD, 0xE1]))
            elif kind == 2:
                del changed[at : at + length]
            else:
                changed[at:at] = changed[at : at + length]
        made.append(
            bytes(changed[: int(draw.integers(20, len(changed) + 1))] if draw.integers(8) == 0 else changed)
        )
    return made


@needs_kernel
def test_the_kernel_reads_plain_headers_itself() -> None:
    for payload in samples():
        assert kernel.announce(payload) is not None
        assert read_jpeg_header(memoryview(payload)) == walk_markers(payload)
    assert read_jpeg_header(jpeg(orientation=6, restart_marker_blocks=2)) == JpegHeader(
        width=40, height=30, components=3, bits=8, coding=0xC0, orientation=6, restart_interval=2
    )


@needs_kernel
def test_the_kernel_never_says_anything_else_than_python_does() -> None:
    answered = 0
    for payload in samples():
        for changed in mutations(payload, count=400):
            found = kernel.announce(changed)
            if found is not None:
                answered += 1
                assert walk_markers(changed) == found
    assert answered > 1000


def test_a_header_with_fill_bytes_and_junk_is_read_all_the_same() -> None:
    payload = jpeg()
    frame = payload.index(b"\xff\xc0")
    for extra in (b"\xff\xff", b"junk"):
        assert read_jpeg_header(payload[:frame] + extra + payload[frame:]) == read_jpeg_header(payload)
    with pytest.raises(DecodeError, match="cut short"):
        read_jpeg_header(payload[:frame])
    assert is_jpeg(payload) and not is_jpeg(b"")
