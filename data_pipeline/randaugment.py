"""RandAugment(n, m): which operations each image meets, and how strongly. Draws from keys, computes by batch.

The sixteen operations and the meaning of a magnitude are those of the TensorFlow code of CoAtNet's lineage,
since its recipes' magnitudes (15, 20) mean nothing elsewhere. Two of its oddities are kept for that reason:
posterize and solarize grow weaker with m. One is not: contrast moves away from the image's mean, not from its
number of pixels / 256. Pixel distances are shares of the side, so that they mean the same at other
resolutions; at 224 they are the code's.

Source: Cubuk et al., arXiv 1909.13719; tensorflow/tpu, models/official/efficientnet/autoaugment.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coatnet.runtime.on_device import on_device
from data_pipeline import randaugment_ops as ops
from data_pipeline.counter import uniforms
from data_pipeline.rectangles import inside

_Floats = NDArray[np.float64]
_Operation = Callable[[Tensor, Tensor], Tensor]
_Amounts = Callable[[float, _Floats], _Floats]
_DRAWS = 4  # operation, sign, and cutout's centre
_SIDE = 224.0  # of the images for which the lineage's pixel distances were chosen


def _either_way(strength: Callable[[float], float]) -> _Amounts:
    return lambda level, signs: strength(level) * signs


def _alike(strength: Callable[[float], float]) -> _Amounts:
    return lambda level, signs: np.full_like(signs, strength(level))


_NOTHING = _alike(lambda level: 0.0)
_ENHANCE = _alike(lambda level: level * 1.8 + 0.1)
_SHEAR = _either_way(lambda level: level * 0.3)
_TRANSLATE = _either_way(lambda level: level * 100.0 / _SIDE)

# The operation, and its amounts from a level (m / 10) and the images' random signs. The order is part of the
# random stream: append only.
OPERATIONS: dict[str, tuple[_Operation, _Amounts]] = {
    "autocontrast": (ops.autocontrast, _NOTHING),
    "equalize": (ops.equalize, _NOTHING),
    "invert": (ops.invert, _NOTHING),
    "rotate": (ops.rotate, _either_way(lambda level: level * 30.0)),  # degrees
    "posterize": (ops.posterize, _alike(lambda level: min(max(int(level * 4.0), 1), 8))),  # bits kept
    "solarize": (ops.solarize, _alike(lambda level: min(int(level * 256.0), 256))),
    "color": (ops.color, _ENHANCE),
    "contrast": (ops.contrast, _ENHANCE),
    "brightness": (ops.brightness, _ENHANCE),
    "sharpness": (ops.sharpness, _ENHANCE),
    "shear_x": (ops.shear_x, _SHEAR),
    "shear_y": (ops.shear_y, _SHEAR),
    "translate_x": (ops.translate_x, _TRANSLATE),
    "translate_y": (ops.translate_y, _TRANSLATE),
    "solarize_add": (ops.solarize_add, _alike(lambda level: min(int(level * 110.0), 255))),
}
CUTOUT = "cutout"  # the sixteenth: it needs a place instead of an amount
NAMES = (*OPERATIONS, CUTOUT)


def randaugment(images: Tensor, keys: NDArray[np.int64], *, n: int, m: float) -> Tensor:
    """Apply n random operations of magnitude m to each image.

    Shape: images uint8 (N, H, W, 3), keys (N,) → the same.
    """
    for layer in range(n):
        draws = uniforms(keys, f"randaugment {layer}", count=_DRAWS)
        chosen = np.floor(draws[:, 0] * len(NAMES)).astype(np.int64)
        result = images.clone()
        for index in np.unique(chosen).tolist():
            rows = np.flatnonzero(chosen == index)
            where = on_device(torch.from_numpy(rows), images.device)
            result[where] = _apply(NAMES[index], images[where], draws[rows], level=m / 10.0)
        images = result
    return images


def _apply(name: str, images: Tensor, draws: _Floats, *, level: float) -> Tensor:
    if name == CUTOUT:
        return _cutout(images, draws[:, 2:4], level=level)
    operation, amounts = OPERATIONS[name]
    signs = np.where(draws[:, 1] < 0.5, -1.0, 1.0)
    return operation(images, on_device(torch.from_numpy(amounts(level, signs)), images.device))


def _cutout(images: Tensor, centres: _Floats, *, level: float) -> Tensor:
    """Paint a gray square around a random place, cut off at the border."""
    height, width = images.shape[1:3]
    half_height, half_width = (int(level * 40.0 / _SIDE * side) for side in (height, width))
    across, down = np.floor(centres * (width, height)).T
    boxes = np.stack(
        [across - half_width, down - half_height, across + half_width, down + half_height], axis=1
    )
    painted = inside(on_device(torch.from_numpy(boxes), images.device), height=height, width=width)
    return torch.where(painted[..., None], ops.FILL, images)
