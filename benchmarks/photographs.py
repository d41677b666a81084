"""Photographs of ImageNet's statistics (about 500×375 pixels, 110 KB) for the benchmarks.

Made from Caltech-101 by upscaling where the archive is at hand, otherwise from random smooth fields: not
photographs, but with the same share of entropy coding. The result says which.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (500, 375)
TARGET_BYTES = 110_000
CLASSES = 10
_ARCHIVE = Path(__file__).parents[1] / "../shared/data/caltech101.tar"


def write_photographs(folder: Path, *, count: int, distinct: int = 200) -> str:
    """Write `count` JPEGs as `folder/CLASS/NUMBER.jpg`, repeating `distinct` ones, and say what they are."""
    sources, what = _sources(distinct)
    payloads = [_encode(image) for image in sources]
    for number in range(count):
        path = folder / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payloads[number % len(payloads)])
    mean_bytes = sum(map(len, payloads)) / len(payloads)
    return f"{what}, {SIZE[0]}×{SIZE[1]}, {mean_bytes / 1000:.0f} kB on average"


def _sources(distinct: int) -> tuple[list[Image.Image], str]:
    if _ARCHIVE.exists():
        images = []
        with tarfile.open(_ARCHIVE) as tar:
            members = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
            for member in members[:: max(1, len(members) // distinct)][:distinct]:
                file = tar.extractfile(member)
                assert file is not None
                with Image.open(io.BytesIO(file.read())) as image:
                    images.append(image.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS))
        return images, f"{len(images)} Caltech-101 photographs, upscaled"
    draw = np.random.default_rng(0)
    fields = [draw.integers(0, 255, (40, 52, 3), dtype=np.uint8) for _ in range(min(distinct, 50))]
    images = [Image.fromarray(field).resize(SIZE, Image.Resampling.BICUBIC) for field in fields]
    return images, f"{len(images)} synthetic images"


def _encode(image: Image.Image) -> bytes:
    """Add sensor-like noise and choose the quality that comes nearest to ImageNet's size."""
    draw = np.random.default_rng(image.size[0])
    pixels = np.asarray(image, dtype=np.int16) + draw.normal(0, 6, (image.height, image.width, 1))
    noisy = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    low, high = 50, 98
    best = b""
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        noisy.save(buffer, "JPEG", quality=quality)
        best = buffer.getvalue()
        low, high = (quality + 1, high) if len(best) < TARGET_BYTES else (low, quality - 1)
    return best
