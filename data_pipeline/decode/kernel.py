"""The C kernel behind plain functions; the only module that imports it, and that says why it is not there.

The kernel decodes what nearly every photograph is: sequential 8-bit JPEGs in gray or YCbCr, whole or by
restart intervals. It is strict: what is rare or broken comes back as a status; Pillow has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode.errors import MAX_PIXELS

Payload = bytes | memoryview  # a view of a shard's record need not be copied for the kernel

_native: ModuleType | None
try:
    import data_pipeline.decode._kernel as _native
except ImportError as error:
    _native, _why_missing = None, str(error)


class Status(IntEnum):
    """What the kernel says of an image; the numbers are csrc/jpeg.h's."""

    OK = 0
    UNSUPPORTED = 1
    CORRUPT = 2
    LIMIT = 3
    BAD_BOX = 4
    NO_MEMORY = 5


def is_available() -> bool:
    """Say whether the extension was built and could be loaded."""
    return _native is not None


def describe() -> str:
    """Return the instruction set in use, or why there is no kernel."""
    return str(_native.simd()) if _native is not None else _why_missing


def decode(
    payloads: Sequence[Payload],
    boxes: NDArray[np.integer],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    *,
    interpolation: str,
) -> list[Status]:
    """Decode a batch without the GIL; arguments as for `decode_batch`, which has checked them."""
    assert _native is not None
    statuses = _native.decode_batch(
        payloads,
        np.ascontiguousarray(boxes, dtype=np.int32),
        np.ascontiguousarray(flips, dtype=np.uint8),
        out,
        out.shape[1],
        out.shape[2],
        interpolation == "bicubic",
        MAX_PIXELS,
        True,
    )
    return [Status(status) for status in statuses]


def check(payload: Payload) -> Status:
    """Entropy-decode a whole image and keep nothing."""
    assert _native is not None
    return Status(_native.check(payload, MAX_PIXELS))


def announce(payload: Payload) -> tuple[int, ...] | None:
    """Return a JPEG's facts, in the order of `JpegHeader`; None without a kernel or a plain header."""
    found: tuple[int, ...] | None = None if _native is None else _native.announce(payload)
    return found


def tile(payload: Payload, *, tile_width: int) -> bytes | Status:
    """Rewrite a JPEG's scan with restart markers every `tile_width` pixels, or say why that cannot be."""
    assert _native is not None
    result = _native.tile(payload, tile_width, MAX_PIXELS)
    return result if isinstance(result, bytes) else Status(result)
