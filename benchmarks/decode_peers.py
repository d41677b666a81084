"""Other ways from a JPEG to a random crop of 224 pixels, each as its users would write it.

All resize with antialiasing and bicubic weights except where the name says otherwise: OpenCV's only
antialiased way is by area, and simplejpeg with OpenCV's linear resize is the fastest way without any. DALI
and webdataset draw their own crops, of the same distribution. What is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 224
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_Decoder = Callable[[bytes, list[int], bool, np.ndarray], None]


def runs(payloads: list[bytes], boxes: np.ndarray, flips: np.ndarray) -> dict[str, Callable[[], None]]:
    """Return a function for each peer that decodes all payloads once."""
    found = {
        name: _one_by_one(decoder, payloads, boxes, flips)
        for name, (needs, decoder) in _DECODERS.items()
        if _installed(*needs)
    }
    if _installed("nvidia.dali"):
        found["dali_cpu"] = _dali(payloads)
    if _installed("webdataset", "torchvision"):
        found["webdataset"] = _webdataset(payloads)
    return found


def missing() -> list[str]:
    """Name the peers that are not installed here."""
    wanted = {name: needs for name, (needs, _) in _DECODERS.items()}
    wanted |= {"dali_cpu": ("nvidia.dali",), "webdataset": ("webdataset", "torchvision")}
    return [name for name, needs in wanted.items() if not _installed(*needs)]


def pillow(payload: bytes, box: list[int], flip: bool, out: np.ndarray) -> None:
    """Decode all, crop, resize."""
    _finish(Image.open(io.BytesIO(payload)).convert("RGB"), box, flip, out)


def _pillow_draft(payload: bytes, box: list[int], flip: bool, out: np.ndarray) -> None:
    """Let libjpeg halve the image where the crop is at least twice the output (rarely, at this size)."""
    image = Image.open(io.BytesIO(payload))
    scale = 2 if min(box[2] - box[0], box[3] - box[1]) >= 2 * SIDE else 1
    image.draft("RGB", (image.width // scale, image.height // scale))
    _finish(image.convert("RGB"), [side // scale for side in box], flip, out)


def _opencv_area(payload: bytes, box: list[int], flip: bool, out: np.ndarray) -> None:
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(payload, np.uint8), flags)
    assert image is not None
    _finish_opencv(image, box, flip, out, cv2.INTER_AREA)


def _simplejpeg(payload: bytes, box: list[int], flip: bool, out: np.ndarray) -> None:
    import simplejpeg

    _finish(Image.fromarray(simplejpeg.decode_jpeg(payload)), box, flip, out)


def _simplejpeg_aliased(payload: bytes, box: list[int], flip: bool, out: np.ndarray) -> None:
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    _finish_opencv(simplejpeg.decode_jpeg(payload), box, flip, out, cv2.INTER_LINEAR)


def _torchvision(payload: bytes, box: list[int], flip: bool, out: np.ndarray) -> None:
    import torch
    from torchvision.io import decode_jpeg
    from torchvision.transforms.v2 import InterpolationMode, functional

    image = decode_jpeg(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    resized = functional.resized_crop(
        image,
        *(box[1], box[0], box[3] - box[1], box[2] - box[0]),
        [SIDE, SIDE],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    pixels = resized.permute(1, 2, 0).numpy()
    out[:] = pixels[:, ::-1] if flip else pixels


_DECODERS: dict[str, tuple[tuple[str, ...], _Decoder]] = {
    "pillow": (("PIL",), pillow),
    "pillow_draft": (("PIL",), _pillow_draft),
    "opencv_area": (("cv2",), _opencv_area),
    "simplejpeg_pillow": (("simplejpeg",), _simplejpeg),
    "simplejpeg_aliased": (("simplejpeg", "cv2"), _simplejpeg_aliased),
    "torchvision": (("torchvision",), _torchvision),
}


def _dali(payloads: list[bytes]) -> Callable[[], None]:
    """Decode by DALI's CPU operators, a batch at a time, one thread."""
    from nvidia.dali import fn, pipeline_def, types

    views = [np.frombuffer(payload, np.uint8) for payload in payloads]

    @pipeline_def(batch_size=len(payloads), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def pipeline() -> object:
        encoded = fn.external_source(lambda: views, batch=True, no_copy=True)
        crops = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=_AREA, random_aspect_ratio=_RATIO
        )
        resized = fn.resize(crops, size=[SIDE, SIDE], interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.flip(resized, horizontal=fn.random.coin_flip())

    built = pipeline()
    built.build()

    def run() -> None:
        (images,) = built.run()
        assert len(images) == len(payloads)

    run()
    return run


def _webdataset(payloads: list[bytes]) -> Callable[[], None]:
    """Decode by webdataset's usual pipeline: a tar, Pillow, torchvision's transforms."""
    import webdataset
    from torchvision.transforms import v2

    folder = tempfile.TemporaryDirectory()
    tar = Path(folder.name) / "photographs.tar"
    with tarfile.open(tar, "w") as file:
        for number, payload in enumerate(payloads):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(payload)
            file.addfile(member, io.BytesIO(payload))
    crop = v2.RandomResizedCrop(SIDE, interpolation=v2.InterpolationMode.BICUBIC)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def run() -> None:
        dataset = webdataset.WebDataset([str(tar)], shardshuffle=False).decode("pil").to_tuple("jpg")
        assert sum(1 for _ in dataset.map_tuple(transform)) == len(payloads), folder

    return run


def _one_by_one(
    decoder: _Decoder, payloads: list[bytes], boxes: np.ndarray, flips: np.ndarray
) -> Callable[[], None]:
    out = np.empty((len(payloads), SIDE, SIDE, 3), np.uint8)

    def run() -> None:
        for payload, box, flip, target in zip(payloads, boxes.tolist(), flips.tolist(), out, strict=True):
            decoder(payload, box, flip, target)

    return run


def _finish(image: Image.Image, box: list[int], flip: bool, out: np.ndarray) -> None:
    left, top, right, bottom = box
    pixels = np.asarray(image.crop((left, top, right, bottom)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    out[:] = pixels[:, ::-1] if flip else pixels


def _finish_opencv(image: np.ndarray, box: list[int], flip: bool, out: np.ndarray, how: int) -> None:
    import cv2

    pixels = cv2.resize(image[box[1] : box[3], box[0] : box[2]], (SIDE, SIDE), interpolation=how)
    out[:] = pixels[:, ::-1] if flip else pixels


def _installed(*names: str) -> bool:
    for name in names:
        try:
            if importlib.util.find_spec(name) is None:
                return False
        except ModuleNotFoundError:
            return False
    return True
