"""A JPEG's header, by walking its markers. Decodes nothing; holds no policy."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from data_pipeline.decode import kernel
from data_pipeline.decode.errors import DecodeError

_SOI, _EOI, _SOS, _DRI, _APP1 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE1
_NOT_FRAMES = {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC lie among the start-of-frame codes
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_DCT = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # Huffman or arithmetic coding; the others are lossless or differential
_HUFFMAN = {0xC0, 0xC1, 0xC2}
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN = b"\xff\xda"
_MOST_SCANS = 256  # encoders write about ten; each of a progressive JPEG's goes over the whole image
_BLOCK_PIXELS, _BITS = 64, 8
_ORIENTATION_TAG = 0x0112
_MOST_JUNK = 1 << 20  # between two markers
_JUNK = f"more than {_MOST_JUNK >> 20} MiB of junk between two markers of the JPEG's header"
_CUT_SHORT = "the JPEG's header is cut short"


class JpegHeader(NamedTuple):
    """What the markers before the first scan say; `coding` is the start-of-frame marker's code."""

    width: int
    height: int
    components: int
    bits: int
    coding: int
    orientation: int
    restart_interval: int

    @property
    def progressive(self) -> bool:
        """True when the scans refine each other, so that no region can be decoded on its own."""
        return self.coding in _PROGRESSIVE

    @property
    def supported(self) -> bool:
        """True for 8-bit DCT; 12 bits and the lossless processes are read by nothing here."""
        return self.coding in _DCT and self.bits == 8


def check_effort(header: JpegHeader, payload: bytes | memoryview) -> None:
    """Refuse what would cost a decoder far more than its bytes promise.

    Raises:
        DecodeError: fewer bits than blocks, each of which takes one at least; or very many scans.
    """
    if header.coding in _HUFFMAN:
        least = header.width * header.height // (_BLOCK_PIXELS * _BITS)
        if len(payload) < least:
            size = f"{header.width}×{header.height}"
            raise DecodeError("truncated", f"{len(payload):,} bytes cannot hold {size} pixels")
    if header.progressive and (scans := bytes(payload).count(_SCAN)) > _MOST_SCANS:
        raise DecodeError("limit", f"{scans:,} scans, more than {_MOST_SCANS}")


def is_jpeg(payload: bytes | memoryview) -> bool:
    """Say whether the bytes begin as a JPEG does."""
    return payload[:3] == b"\xff\xd8\xff"


def read_jpeg_header(payload: bytes | memoryview) -> JpegHeader:
    """Read the markers up to the first scan, by the kernel where they follow each other without a gap.

    Raises:
        DecodeError: they end before a frame and a scan were announced, or a segment makes no sense.
    """
    found = kernel.announce(payload)
    return JpegHeader(*found) if found is not None else walk_markers(bytes(payload))


def walk_markers(payload: bytes) -> JpegHeader:
    """Do the same for every file, in 8 µs instead of 1.

    Raises:
        DecodeError: as `read_jpeg_header` does.
    """
    frame: tuple[int, int, int, int, int] | None = None
    orientation, restart_interval = 1, 0
    position, end = 2, len(payload)
    while True:
        code, position = _next_marker(payload, position)
        if code in _STANDALONE:
            continue
        if code == _EOI:
            raise DecodeError("corrupt", "the JPEG ends before its first scan")
        start = position + 2
        position += int.from_bytes(payload[position:start], "big")
        if position < start or position > end:
            raise DecodeError("truncated", _CUT_SHORT)
        if 0xC0 <= code <= 0xCF and code not in _NOT_FRAMES:
            frame = _frame(code, payload[start:position])
        elif code == _DRI and position >= start + 2:
            restart_interval = int.from_bytes(payload[start : start + 2], "big")
        elif code == _APP1 and payload.startswith(b"Exif\0\0", start, position):
            orientation = _exif_orientation(payload[start + 6 : position])
        elif code == _SOS:
            break
    if frame is None:
        raise DecodeError("corrupt", "a scan begins before any frame was announced")
    coding, bits, height, width, components = frame
    return JpegHeader(width, height, components, bits, coding, orientation, restart_interval)


def _next_marker(payload: bytes, position: int) -> tuple[int, int]:
    """Return a marker's code and the position behind it, over fill bytes and, as libjpeg does, over junk."""
    found = _MARKER.search(payload, position, position + _MOST_JUNK)
    if found is None:
        missing = len(payload) <= position + _MOST_JUNK
        raise DecodeError("truncated" if missing else "corrupt", _CUT_SHORT if missing else _JUNK)
    return payload[found.end() - 1], found.end()


def _frame(code: int, body: bytes) -> tuple[int, int, int, int, int]:
    if len(body) < 6:
        raise DecodeError("corrupt", "the JPEG's frame header is too short")
    bits, height, width, components = struct.unpack(">BHHB", body[:6])
    return code, bits, height, width, components


def _exif_orientation(tiff: bytes) -> int:
    """Find the orientation in the first directory; whatever is broken or out of range reads as 1."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    for index in range(entries):
        offset = start + 2 + 12 * index
        if offset + 12 > len(tiff):
            return 1
        tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, offset)
        if tag == _ORIENTATION_TAG and kind == 3 and count == 1:
            (value,) = struct.unpack_from(f"{order}H", tiff, offset + 8)
            return value if 1 <= value <= 8 else 1
    return 1
