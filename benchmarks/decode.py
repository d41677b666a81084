"""Decode + RandomResizedCrop(224) + flip, one core, side by side: python benchmarks/decode.py --json

In one interleaved run on the same photographs: the peers of `decode_peers.py` that are installed, the C
kernel, and the C kernel on tiled copies. The photographs have ImageNet's statistics (500×375, about 110 KB):
those of ../shared/data/caltech101.tar, enlarged and given a little film grain, because enlarged images are
too smooth to weigh 110 KB; without that file they are drawn. `source` in the result says which. Times are
the process's CPU time: per core, whoever else uses the machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import decode_peers
import numpy as np
from in_turn import least_cpu_seconds
from PIL import Image

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.crops import random_resized_boxes
from data_pipeline.decode import backend_name, decode_batch, kernel
from data_pipeline.tile import TILE_WIDTH, tile_jpeg

PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "../shared/data/caltech101.tar"
GRAIN = 6.0  # standard deviation, in levels
QUALITY = 96


def photographs(count: int) -> tuple[list[bytes], str]:
    """Return JPEGs with ImageNet's size and weight, and where they come from."""
    generator = np.random.default_rng(0)
    if PHOTOGRAPHS.exists():
        images, source = _from_caltech(count), "caltech101, enlarged, with grain"
    else:
        images, source = [_drawn(generator) for _ in range(count)], "drawn"
    return [_encode(image, generator) for image in images], source


def measure(*, count: int = 100, rounds: int = 5) -> dict[str, object]:
    """Measure every decoder, interleaved, and return images/s per core and the ratios to Pillow."""
    payloads, source = photographs(count)
    tiled = [tile_jpeg(payload) or payload for payload in payloads] if kernel.is_available() else payloads
    runs = decode_peers.runs(payloads, *_crops(payloads))
    runs["ours"] = _ours(payloads)
    runs["ours_tiled"] = _ours(tiled)
    best = least_cpu_seconds(runs, rounds=rounds)
    rates = {name: round(count / seconds, 1) for name, seconds in best.items()}
    return {
        "decode_vs_pillow": round(best["pillow"] / best["ours"], 2),
        "decode_tiled_vs_pillow": round(best["pillow"] / best["ours_tiled"], 2),
        "images_per_second": rates,
        "tile_images_per_second": _tile_rate(payloads),
        "tiled_size": round(sum(map(len, tiled)) / sum(map(len, payloads)), 4),
        "tile_width": TILE_WIDTH,
        "psnr_least": round(_least_psnr(payloads), 1),
        "mean_bytes": round(sum(map(len, payloads)) / count),
        "source": source,
        "backend": f"{backend_name()} ({kernel.describe()})",
    }


def _from_caltech(count: int) -> list[Image.Image]:
    images: list[Image.Image] = []
    with tarfile.open(PHOTOGRAPHS) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
        for name in names[:: max(len(names) // (2 * count), 1)]:
            stream = tar.extractfile(name)
            assert stream is not None
            image = Image.open(stream).convert("RGB")
            if min(image.size) >= 190:
                size = (500, 375) if image.width >= image.height else (375, 500)
                images.append(image.resize(size, Image.Resampling.BICUBIC))
            if len(images) == count:
                break
    return images


def _drawn(generator: np.random.Generator) -> Image.Image:
    rows, columns = np.mgrid[0:375, 0:500]
    phases = generator.uniform(5, 60, (3, 2))
    waves = [np.sin(rows / down) * np.cos(columns / across) for down, across in phases]
    return Image.fromarray((128 + 100 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, generator: np.random.Generator) -> bytes:
    grain = generator.normal(0, GRAIN, (image.height, image.width, 1))
    pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _crops(payloads: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([Image.open(io.BytesIO(payload)).size for payload in payloads])
    return random_resized_boxes(sizes[:, 0], sizes[:, 1], np.arange(len(payloads)), AugmentConfig())


def _ours(payloads: list[bytes]) -> Callable[[], None]:
    boxes, flips = _crops(payloads)
    out = np.empty((len(payloads), decode_peers.SIDE, decode_peers.SIDE, 3), np.uint8)

    def run() -> None:
        assert not any(decode_batch(payloads, boxes, flips, out))

    return run


def _tile_rate(payloads: list[bytes]) -> float | None:
    if not kernel.is_available():
        return None
    best = least_cpu_seconds({"tile": lambda: [tile_jpeg(payload) for payload in payloads]}, rounds=3)
    return round(len(payloads) / best["tile"], 1)


def _least_psnr(payloads: list[bytes]) -> float:
    """Return the worst agreement with Pillow's pixels, in decibels."""
    boxes, flips = _crops(payloads)
    out = np.empty((len(payloads), decode_peers.SIDE, decode_peers.SIDE, 3), np.uint8)
    decode_batch(payloads, boxes, flips, out)
    wanted = np.empty((decode_peers.SIDE, decode_peers.SIDE, 3), np.uint8)
    least = float("inf")
    for payload, box, flip, found in zip(payloads, boxes.tolist(), flips.tolist(), out, strict=True):
        decode_peers.pillow(payload, box, flip, wanted)
        error = np.square(found.astype(float) - wanted).mean()
        least = min(least, 10 * float(np.log10(255**2 / max(error, 1e-9))))
    return least


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = measure(count=options.count, rounds=options.rounds)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    rates = result["images_per_second"]
    assert isinstance(rates, dict)
    for name, rate in sorted(rates.items(), key=lambda item: item[1]):
        print(f"{name:18} {rate:8.0f} images/s   {rate / rates['pillow']:5.2f}× Pillow")
    print({name: value for name, value in result.items() if name != "images_per_second"})
    print(f"not installed: {', '.join(decode_peers.missing()) or 'none'}")


if __name__ == "__main__":
    main()
