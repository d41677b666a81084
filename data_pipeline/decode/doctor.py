"""`coatnet doctor`'s question: which decoder is in use here, why, and what does it cost?

Imported with the command line, so nothing heavy at the top; the measurement takes half a second.
"""

from __future__ import annotations

import io
import time

_WIDTH, _HEIGHT, _QUALITY = 500, 375, 95  # about 110 KB, the mean of ImageNet's photographs
_OUT = 224
_SECONDS = 0.25  # per backend


def check() -> list[dict[str, str]]:
    """Return one finding: the backend, why it is that one, and its speed beside Pillow's on this machine."""
    from data_pipeline.decode import backend_name, kernel

    payload = _photograph()
    pillow_rate = _images_per_second(payload, backend="pillow")
    if backend_name() == "kernel":
        rate = _images_per_second(payload, backend="kernel")
        detail = (
            f"C kernel ({kernel.describe()}): {rate:.0f} images/s per core, {rate / pillow_rate:.1f}× Pillow"
        )
        return [{"name": "decode", "status": "ok", "detail": detail}]
    detail = (
        f"Pillow: {pillow_rate:.0f} images/s per core, a third of the C kernel's, which is missing "
        f"({kernel.describe()}): install a C compiler and Python's headers, then reinstall coatnet"
    )
    return [{"name": "decode", "status": "warn", "detail": detail}]


def _photograph() -> bytes:
    """Draw something with a photograph's statistics: smooth shapes under noise."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    waves = [np.sin(rows / (20 + 9 * i)) * np.cos(columns / (31 - 7 * i)) for i in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (_HEIGHT, _WIDTH, 1))
    pixels = (128 + 80 * np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _images_per_second(payload: bytes, *, backend: str) -> float:
    import numpy as np

    from data_pipeline.augment_config import AugmentConfig
    from data_pipeline.crops import random_resized_boxes
    from data_pipeline.decode import decode_batch

    count = 8
    sides = np.full(count, _WIDTH), np.full(count, _HEIGHT)
    boxes, flips = random_resized_boxes(*sides, np.arange(count), AugmentConfig())
    out = np.empty((count, _OUT, _OUT, 3), np.uint8)
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        start = time.process_time()  # of this process: other jobs on a login node do not count
        decode_batch([payload] * count, boxes, flips, out, backend=backend)
        best = min(best, time.process_time() - start)
    return count / best
