"""Write scikit-learn's handwritten digits (real 8×8 scans inside its wheel) as JPEG image folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_SIDE = 64
_JPEG_QUALITY = 95
_VALIDATION_EVERY = 5
_FULL_SCALE = 16
CORPORA = {"pretrain": range(5), "finetune": range(5, 10)}


def write_digits(destination: Path) -> int:
    """Write `destination/{pretrain,finetune}/{train,validation}/CLASS/NUMBER.jpg` and return the image count.

    Every fifth scan of a class is for validation. The folder appears whole or not at all.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (CC BY 4.0).
    """
    if destination.exists():
        return sum(1 for _ in destination.rglob("*.jpg"))
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    seen: dict[int, int] = {}
    for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        digit = int(label)
        seen[digit] = seen.get(digit, -1) + 1
        corpus = next(name for name, classes in CORPORA.items() if digit in classes)
        split = "validation" if seen[digit] % _VALIDATION_EVERY == 0 else "train"
        folder = temporary / corpus / split / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (scan * (255 / _FULL_SCALE)).astype("uint8")
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:04d}.jpg", quality=_JPEG_QUALITY)
    temporary.rename(destination)
    return len(digits.target)
