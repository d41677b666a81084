"""From an image's bytes to pixels of the wanted size: one call per batch, one verdict per image.

Knows nothing of shards, of order and of what is done about a bad image. Two backends: the C kernel, and
Pillow, which also takes every image that the kernel refuses. They differ in pixels by a rounding here and
there, so `backend_name()` belongs to a run's fingerprint. None on OpenCV: its bicubic is not antialiased.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.decode import kernel, pillow
from data_pipeline.decode.errors import MAX_BYTES, DecodeError, check_bytes
from data_pipeline.decode.header import ImageInfo, probe
from data_pipeline.decode.jpeg_header import is_jpeg, read_jpeg_header
from data_pipeline.decode.kernel import Payload, Status

__all__ = [
    "BACKENDS",
    "DecodeError",
    "ImageInfo",
    "backend_name",
    "check_image",
    "decode_batch",
    "decode_image",
    "probe",
]

BACKENDS = ("kernel", "pillow")


def backend_name(backend: str = "auto") -> str:
    """Return the name of the backend that "auto" means on this machine, or check a given one.

    Raises:
        ValueError: no such backend here.
    """
    if backend == "auto":
        return "kernel" if kernel.is_available() else "pillow"
    if backend not in BACKENDS:
        raise ValueError(f"decoder backend is {backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    if backend == "kernel" and not kernel.is_available():
        raise ValueError(f"decoder backend is 'kernel', which is not built here: {kernel.describe()}")
    return backend


def decode_batch(
    payloads: Sequence[Payload],
    boxes: NDArray[np.integer],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    *,
    backend: str = "auto",
    interpolation: str = "bicubic",
    orientation: str = "ignore",
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
    statuses = [Status.UNSUPPORTED] * len(payloads)
    if backend_name(backend) == "kernel":
        chosen = [
            len(payload) <= MAX_BYTES and (orientation == "ignore" or not _is_turned(payload))
            for payload in payloads
        ]
        statuses = _run_kernel(payloads, boxes, flips, out, chosen, interpolation=interpolation)
    verdicts = list(map(_damage, statuses))
    for row in (row for row, status in enumerate(statuses) if status is not Status.OK):
        try:
            pillow.decode_into(
                bytes(payloads[row]),
                tuple(boxes[row].tolist()),
                out[row],
                flip=bool(flips[row]),
                interpolation=interpolation,
                orientation=orientation,
            )
        except DecodeError as error:
            verdicts[row] = error
    return verdicts


def decode_image(payload: bytes, *, orientation: str = "ignore") -> Image.Image:
    """Decode one whole image to RGB, for previews and checks.

    Raises:
        DecodeError: it could not be decoded.
    """
    return pillow.decode_rgb(payload, orientation=orientation)


def check_image(payload: Payload) -> DecodeError | None:
    """Decode one whole image and say what is wrong with it: None, damage (`usable`), or an error.

    Without the kernel, damage that Pillow repairs in silence is not seen.
    """
    status = Status.UNSUPPORTED
    try:
        check_bytes(len(payload))
        if kernel.is_available():
            status = kernel.check(payload)
        if status is not Status.OK:
            pillow.decode_rgb(bytes(payload))
    except DecodeError as error:
        return error
    return _damage(status)


def _run_kernel(
    payloads: Sequence[Payload],
    boxes: NDArray[np.integer],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    chosen: list[bool],
    *,
    interpolation: str,
) -> list[Status]:
    """Let the kernel decode the chosen payloads; the others keep the status that sends them to Pillow."""
    if all(chosen):
        return kernel.decode(payloads, boxes, flips, out, interpolation=interpolation)
    statuses = [Status.UNSUPPORTED] * len(payloads)
    for row in np.flatnonzero(chosen).tolist():
        one = slice(row, row + 1)
        (statuses[row],) = kernel.decode(
            [payloads[row]], boxes[one], flips[one], out[one], interpolation=interpolation
        )
    return statuses


def _is_turned(payload: Payload) -> bool:
    try:
        return is_jpeg(payload) and read_jpeg_header(payload).orientation != 1
    except DecodeError:
        return False


def _damage(status: Status) -> DecodeError | None:
    """Return what is to be said of an image that Pillow could decode."""
    if status is Status.CORRUPT:
        return DecodeError("damaged", "the JPEG's data is damaged; Pillow repaired what it could")
    return None


def _check(
    payloads: Sequence[Payload], boxes: NDArray[np.integer], flips: NDArray[np.bool_], out: NDArray[np.uint8]
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
