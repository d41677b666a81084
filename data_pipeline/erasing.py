"""Random erasing: a rectangle of the image becomes its mean colour, which is zero once normalised."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coatnet.runtime.on_device import on_device
from data_pipeline.counter import uniforms
from data_pipeline.rectangles import inside

_AREA = (0.02, 1 / 3)  # shares of the image
_RATIO = (0.3, 10 / 3)  # height / width


def erase(images: Tensor, keys: NDArray[np.int64], *, probability: float) -> Tensor:
    """Erase, in place, one rectangle in a share `probability` of the images, cut to the image if too long.

    Shape: images float (n, 3, H, W), keys (n,) → the same.
    Source: Zhong et al., arXiv 1708.04896.
    """
    height, width = images.shape[2:]
    boxes = torch.from_numpy(_boxes(keys, probability=probability, height=height, width=width))
    erased = inside(on_device(boxes, images.device), height=height, width=width)
    return images.masked_fill_(erased[:, None], 0.0)


def _boxes(keys: NDArray[np.int64], *, probability: float, height: int, width: int) -> NDArray[np.int64]:
    """Draw each image's (left, top, right, bottom), (n, 4); empty where nothing is erased."""
    coin, size, shape, down, across = uniforms(keys, "erasing", count=5).T
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * size)
    ratio = np.exp(np.log(_RATIO[0]) + (np.log(_RATIO[1]) - np.log(_RATIO[0])) * shape)
    taken = coin < probability
    high = np.where(taken, np.clip(np.rint(np.sqrt(area * ratio)), 1, height), 0)
    wide = np.where(taken, np.clip(np.rint(np.sqrt(area / ratio)), 1, width), 0)
    top, left = np.floor(down * (height - high + 1)), np.floor(across * (width - wide + 1))
    return np.stack([left, top, left + wide, top + high], axis=1).astype(np.int64)
