"""From an image's bytes to pixels of the wanted size: one call per batch, one verdict per image.

Knows nothing of shards, of order and of what is done about a bad image. Backends differ in pixels by a
rounding here and there, so `backend_name()` belongs to a run's fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.decode import pillow
from data_pipeline.decode.errors import DEFAULT_LIMITS, DecodeError, DecodeLimits
from data_pipeline.decode.header import ImageInfo, probe

__all__ = [
    "BACKENDS",
    "DecodeError",
    "DecodeLimits",
    "ImageInfo",
    "backend_name",
    "decode_batch",
    "decode_image",
    "probe",
]

BACKENDS = ("pillow",)


def backend_name(backend: str = "auto") -> str:
    """Return the name of the backend that "auto" means on this machine, or check a given one.

    Raises:
        ValueError: no such backend here.
    """
    chosen = "pillow" if backend == "auto" else backend
    if chosen not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed here: auto, {', '.join(BACKENDS)}")
    return chosen


def decode_batch(
    payloads: Sequence[bytes],
    boxes: NDArray[np.integer],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    *,
    backend: str = "auto",
    interpolation: str = "bicubic",
    orientation: str = "ignore",
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> list[DecodeError | None]:
    """Decode each payload's box, resize it with antialiasing to out's size, flip it, and write it to `out`.

    Args:
        boxes: (left, top, right, bottom) in pixels of the source, of the upright image if `orientation` is
            "apply".
        orientation: "ignore" or "apply" what EXIF says.

    Returns:
        One entry per payload: None, or what was wrong. After an error with `usable` False the image's part of
        `out` is undefined.

    Shape: boxes (n, 4), flips (n,), out (n, height, width, 3) uint8, C-contiguous.

    Raises:
        ValueError: shapes, types or names that cannot be used; nothing was decoded.
    """
    _check(payloads, boxes, flips, out)
    backend_name(backend)
    verdicts: list[DecodeError | None] = []
    for payload, box, flip, target in zip(payloads, boxes.tolist(), flips.tolist(), out, strict=True):
        try:
            pillow.decode_into(
                payload,
                tuple(box),
                target,
                flip=flip,
                interpolation=interpolation,
                orientation=orientation,
                limits=limits,
            )
            verdicts.append(None)
        except DecodeError as error:
            verdicts.append(error)
    return verdicts


def decode_image(
    payload: bytes, *, orientation: str = "ignore", limits: DecodeLimits = DEFAULT_LIMITS
) -> Image.Image:
    """Decode one whole image to RGB, for previews and checks.

    Raises:
        DecodeError: it could not be decoded.
    """
    return pillow.decode_rgb(payload, limits=limits, orientation=orientation)


def _check(
    payloads: Sequence[bytes],
    boxes: NDArray[np.integer],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
) -> None:
    count = len(payloads)
    if boxes.shape != (count, 4) or flips.shape != (count,):
        raise ValueError(
            f"boxes are {boxes.shape}, flips {flips.shape}; allowed: ({count}, 4) and ({count},)"
        )
    if out.ndim != 4 or out.shape[0] != count or out.shape[3] != 3 or 0 in out.shape[1:3]:
        raise ValueError(f"out is {out.shape}; allowed: ({count}, height, width, 3)")
    if out.dtype != np.uint8 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be a writable, C-contiguous array of uint8")
