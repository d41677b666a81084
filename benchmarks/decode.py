"""Decode + RandomResizedCrop(224) + flip, one core, side by side: python benchmarks/decode.py --json

Peers, in one interleaved run on the same photographs: Pillow, Pillow with draft, OpenCV, simplejpeg and
torchvision where installed, the C kernel, and the C kernel on tiled copies. The photographs have ImageNet's
statistics (500×375, about 110 KB): those of ../shared/data/caltech101.tar, enlarged and given a little film
grain, because enlarged images are too smooth to weigh 110 KB; without that file they are drawn. `source` in
the result says which. Times are the process's CPU time: per core, whoever else uses the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.crops import random_resized_boxes
from data_pipeline.decode import backend_name, decode_batch, kernel
from data_pipeline.tile import TILE_WIDTH, tile_jpeg

PHOTOGRAPHS = Path(__file__).resolve().parents[1] / "../shared/data/caltech101.tar"
SIDE = 224
GRAIN = 6.0  # standard deviation, in levels
QUALITY = 96
_Pixels = np.ndarray
_Decoder = Callable[[bytes, list[int], bool, _Pixels], None]


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
    tiled = [tile_jpeg(payload).payload for payload in payloads] if kernel.is_available() else payloads
    runs = {name: _runner(decoder, payloads) for name, decoder in _peers().items()}
    runs["ours"] = _ours(payloads)
    runs["ours_tiled"] = _ours(tiled)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
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
    out = np.empty((len(payloads), SIDE, SIDE, 3), np.uint8)

    def run() -> None:
        assert not any(decode_batch(payloads, boxes, flips, out))

    return run


def _runner(decoder: _Decoder, payloads: list[bytes]) -> Callable[[], None]:
    boxes, flips = _crops(payloads)
    out = np.empty((len(payloads), SIDE, SIDE, 3), np.uint8)

    def run() -> None:
        for payload, box, flip, target in zip(payloads, boxes.tolist(), flips.tolist(), out, strict=True):
            decoder(payload, box, flip, target)

    return run


def _peers() -> dict[str, _Decoder]:
    peers: dict[str, _Decoder] = {"pillow": _pillow, "pillow_draft": _pillow_draft}
    optional = {"cv2": _opencv, "simplejpeg": _simplejpeg, "torchvision": _torchvision}
    peers.update({name: peer for name, peer in optional.items() if importlib.util.find_spec(name)})
    return peers


def _finish(image: Image.Image, box: list[int], flip: bool, out: _Pixels) -> None:
    pixels = np.asarray(image.crop(tuple(box)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    out[:] = pixels[:, ::-1] if flip else pixels


def _pillow(payload: bytes, box: list[int], flip: bool, out: _Pixels) -> None:
    _finish(Image.open(io.BytesIO(payload)).convert("RGB"), box, flip, out)


def _pillow_draft(payload: bytes, box: list[int], flip: bool, out: _Pixels) -> None:
    """Let libjpeg halve the image where the crop is at least twice the output (rarely, at this size)."""
    image = Image.open(io.BytesIO(payload))
    scale = 2 if min(box[2] - box[0], box[3] - box[1]) >= 2 * SIDE else 1
    image.draft("RGB", (image.width // scale, image.height // scale))
    _finish(image.convert("RGB"), [side // scale for side in box], flip, out)


def _opencv(payload: bytes, box: list[int], flip: bool, out: _Pixels) -> None:
    """Resize by area, OpenCV's only antialiased way."""
    import cv2

    cv2.setNumThreads(1)
    image = cv2.imdecode(
        np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    )
    pixels = cv2.resize(image[box[1] : box[3], box[0] : box[2]], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    out[:] = pixels[:, ::-1] if flip else pixels


def _simplejpeg(payload: bytes, box: list[int], flip: bool, out: _Pixels) -> None:
    """Decode by simplejpeg, resize by Pillow."""
    import simplejpeg

    _finish(Image.fromarray(simplejpeg.decode_jpeg(payload)), box, flip, out)


def _torchvision(payload: bytes, box: list[int], flip: bool, out: _Pixels) -> None:
    import torch
    from torchvision.io import decode_jpeg
    from torchvision.transforms.v2 import functional

    image = decode_jpeg(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    resized = functional.resized_crop(
        image, box[1], box[0], box[3] - box[1], box[2] - box[0], [SIDE, SIDE], antialias=True
    )
    pixels = resized.permute(1, 2, 0).numpy()
    out[:] = pixels[:, ::-1] if flip else pixels


def _tile_rate(payloads: list[bytes]) -> float | None:
    if not kernel.is_available():
        return None
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for payload in payloads:
            tile_jpeg(payload)
        best = min(best, time.process_time() - start)
    return round(len(payloads) / best, 1)


def _least_psnr(payloads: list[bytes]) -> float:
    """Return the worst agreement with Pillow's pixels, in decibels."""
    boxes, flips = _crops(payloads)
    out = np.empty((len(payloads), SIDE, SIDE, 3), np.uint8)
    decode_batch(payloads, boxes, flips, out)
    wanted = np.empty((SIDE, SIDE, 3), np.uint8)
    least = float("inf")
    for payload, box, flip, found in zip(payloads, boxes.tolist(), flips.tolist(), out, strict=True):
        _pillow(payload, box, flip, wanted)
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
        print(f"{name:14} {rate:8.0f} images/s   {rate / rates['pillow']:5.2f}× Pillow")
    print({name: value for name, value in result.items() if name != "images_per_second"})


if __name__ == "__main__":
    main()
