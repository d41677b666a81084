"""Which part of each image is decoded: boxes from sizes and keys, before a byte is read. Knows no decoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.counter import uniforms

_TRIES = 10  # as in Inception and torchvision: then the largest central crop within the ratio bounds

Boxes = NDArray[np.int32]


def random_resized_boxes(
    widths: NDArray[np.integer], heights: NDArray[np.integer], keys: NDArray[np.int64], config: AugmentConfig
) -> tuple[Boxes, NDArray[np.bool_]]:
    """Choose training crops and flips.

    Shape: widths, heights, keys (n,) → boxes (n, 4), flips (n,).
    Units: boxes are (left, top, right, bottom) in pixels of the source, right and bottom exclusive.
    Source: Szegedy et al., arXiv 1409.4842, section 6, in the form of torchvision's RandomResizedCrop.
    """
    width = np.asarray(widths, dtype=np.float64)[:, None]
    height = np.asarray(heights, dtype=np.float64)[:, None]
    draws = uniforms(keys, "crop", count=2 * _TRIES + 3)
    least, greatest = config.crop_area
    area = width * height * (least + (greatest - least) * draws[:, :_TRIES])
    low, high = np.log(config.crop_ratio)
    ratio = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    tried_width, tried_height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (tried_width >= 1) & (tried_width <= width) & (tried_height >= 1) & (tried_height <= height)
    first = fits.argmax(axis=1)
    found = fits.any(axis=1)
    rows = np.arange(len(first))
    wide, high_ = _largest_within(width[:, 0], height[:, 0], config.crop_ratio)
    crop_width = np.where(found, tried_width[rows, first], wide)
    crop_height = np.where(found, tried_height[rows, first], high_)
    spare_width, spare_height = width[:, 0] - crop_width, height[:, 0] - crop_height
    across, down, coin = draws[:, -3], draws[:, -2], draws[:, -1]
    left = np.where(found, np.floor(across * (spare_width + 1)), spare_width // 2)
    top = np.where(found, np.floor(down * (spare_height + 1)), spare_height // 2)
    boxes = np.stack([left, top, left + crop_width, top + crop_height], axis=1).astype(np.int32)
    return boxes, (coin < 0.5) & config.flip


def evaluation_boxes(
    widths: NDArray[np.integer], heights: NDArray[np.integer], config: AugmentConfig
) -> Boxes:
    """Choose the part that evaluation sees: the central square, or the whole image.

    The central square's side is `evaluate_crop` of the shorter side: resizing the shorter side to 256 and
    cropping 224, without the pixels that would be thrown away.

    Shape: widths, heights (n,) → boxes (n, 4) as in `random_resized_boxes`.
    """
    width, height = np.asarray(widths, dtype=np.int64), np.asarray(heights, dtype=np.int64)
    if config.evaluate_resize == "whole":
        zero = np.zeros_like(width)
        return np.stack([zero, zero, width, height], axis=1).astype(np.int32)
    shorter = np.minimum(width, height)
    side = np.maximum(np.rint(shorter * config.evaluate_crop).astype(np.int64), 1)
    left, top = (width - side) // 2, (height - side) // 2
    return np.stack([left, top, left + side, top + side], axis=1).astype(np.int32)


def _largest_within(
    width: NDArray[np.float64], height: NDArray[np.float64], ratio: list[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest width and height whose ratio is within the bounds."""
    least, greatest = ratio
    return np.clip(np.rint(height * greatest), 1, width), np.clip(np.rint(width / least), 1, height)
