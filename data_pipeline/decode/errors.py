"""What can be wrong with an image's bytes, and the limits that are checked before anything is allocated."""

from __future__ import annotations

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb
MAX_BYTES = 1 << 28
KINDS = ("not_an_image", "unsupported", "limit", "truncated", "corrupt", "box", "damaged")


class DecodeError(Exception):
    """One image could not be decoded, or only with damage.

    Attributes:
        kind: one of `KINDS`.
        detail: one line for the report.
        usable: True only for "damaged": the pixels were delivered, the decoder complained on the way.
    """

    def __init__(self, kind: str, detail: str) -> None:
        assert kind in KINDS, kind
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.usable = kind == "damaged"


def check_size(*, width: int, height: int) -> None:
    """Refuse what a header asks for.

    Raises:
        DecodeError: no pixels, or too many.
    """
    if width < 1 or height < 1:
        raise DecodeError("corrupt", f"the header says {width}×{height} pixels")
    if width * height > MAX_PIXELS:
        raise DecodeError("limit", f"{width}×{height} pixels, more than {MAX_PIXELS:,}")


def check_bytes(size: int) -> None:
    """Refuse a payload's length.

    Raises:
        DecodeError: no bytes, or too many.
    """
    if size == 0:
        raise DecodeError("not_an_image", "no bytes")
    if size > MAX_BYTES:
        raise DecodeError("limit", f"{size:,} bytes, more than {MAX_BYTES:,}")
