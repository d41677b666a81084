"""A PNG's chunks, counted before a decoder sees them: each packed text or profile may unpack to a MiB."""

from __future__ import annotations

from data_pipeline.decode.errors import DecodeError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PACKED = (b"iCCP", b"zTXt", b"iTXt")
_MOST_PACKED = 64
_MOST_CHUNKS = 100_000  # an image of the most pixels in the smallest chunks that encoders write has a third


def is_png(payload: bytes) -> bool:
    """Say whether the bytes begin as a PNG does."""
    return payload.startswith(_SIGNATURE)


def check_chunks(payload: bytes) -> None:
    """Refuse a PNG of very many chunks, or of very many that are packed.

    Raises:
        DecodeError: there are too many.
    """
    position, chunks, packed = len(_SIGNATURE), 0, 0
    while position + 8 <= len(payload):
        packed += payload[position + 4 : position + 8] in _PACKED
        chunks += 1
        if packed > _MOST_PACKED or chunks > _MOST_CHUNKS:
            raise DecodeError("limit", f"a PNG of more than {_MOST_PACKED} packed or {_MOST_CHUNKS:,} chunks")
        position += 12 + int.from_bytes(payload[position : position + 4], "big")
