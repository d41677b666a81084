"""What can be wrong with an image's bytes, and the limits that are checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on what a header may ask for.

    The default number of pixels is the one at which Pillow begins to warn of a decompression bomb.
    """

    max_pixels: int = 89_478_485
    max_bytes: int = 1 << 28

    def check(self, *, width: int, height: int) -> None:
        """Refuse a size.

        Raises:
            DecodeError: no pixels, or too many.
        """
        if width < 1 or height < 1:
            raise DecodeError("corrupt", f"the header says {width}×{height} pixels")
        if width * height > self.max_pixels:
            raise DecodeError("limit", f"{width}×{height} pixels, more than {self.max_pixels:,}")

    def check_bytes(self, size: int) -> None:
        """Refuse a payload's length.

        Raises:
            DecodeError: no bytes, or too many.
        """
        if size == 0:
            raise DecodeError("not_an_image", "no bytes")
        if size > self.max_bytes:
            raise DecodeError("limit", f"{size:,} bytes, more than {self.max_bytes:,}")


DEFAULT_LIMITS = DecodeLimits()
