"""Mixup and cutmix inside fixed groups of consecutive images, so that no world size changes a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from coatnet.runtime.on_device import on_device
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.counter import betas, uniforms
from data_pipeline.rectangles import inside


@dataclass(frozen=True)
class Mixing:
    """Who is mixed with whom, and how.

    Shape: every array (n,), boxes (n, 4) as (left, top, right, bottom); an image without cutmix has a box
    of zeros, one without mixup has `blend` 1. `keep` is the share of the image's own label.
    """

    partners: NDArray[np.int64]
    blend: NDArray[np.float64]
    boxes: NDArray[np.int64]
    keep: NDArray[np.float64]


def draw_mixing(
    keys: NDArray[np.int64], augment: AugmentConfig, *, group_images: int, height: int, width: int
) -> Mixing:
    """Choose partners, shares and rectangles from the keys.

    The partner is a turn of the group, by a distance drawn from its first image's key: each image gives as
    often as it takes. Each image draws its own share.

    Source: Zhang et al., arXiv 1710.09412 (mixup); Yun et al., arXiv 1905.04899 (cutmix).
    """
    if group_images < 2:
        raise ValueError(f"mixup and cutmix need groups of 2 images or more, not {group_images}")
    count = len(keys)
    cuts = _takes_cutmix(keys, augment)
    shares = np.ones(count)
    if augment.mixup:
        shares = np.where(cuts, shares, betas(keys, "mixup", alpha=augment.mixup))
    if augment.cutmix:
        shares = np.where(cuts, betas(keys, "cutmix", alpha=augment.cutmix), shares)
    boxes = np.where(cuts[:, None], _rectangles(keys, 1.0 - shares, height=height, width=width), 0)
    cut_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (height * width)
    return Mixing(
        partners=_partners(keys, group_images=group_images),
        blend=np.where(cuts, 1.0, shares),
        boxes=boxes,
        keep=np.where(cuts, 1.0 - cut_area, shares),
    )


def mix_images(images: Tensor, mixing: Mixing) -> Tensor:
    """Blend each image with its partner, or paste the partner's rectangle.

    Shape: (n, 3, H, W) → the same.
    """
    device = images.device
    own = on_device(torch.from_numpy(mixing.blend.astype(np.float32)), device)[:, None, None, None]
    if mixing.boxes.any():  # inside its box an image has no share of its own
        boxes = on_device(torch.from_numpy(mixing.boxes), device)
        pasted = inside(boxes, height=images.shape[2], width=images.shape[3])[:, None]
        own = own.expand(pasted.shape).masked_fill(pasted, 0.0)
    # One pass and no third batch in memory: on a CPU fresh pages cost as much as the arithmetic.
    return images[on_device(torch.from_numpy(mixing.partners), device)].lerp_(images, own)


def mix_targets(labels: Tensor, mixing: Mixing, *, num_classes: int) -> Tensor:
    """Blend the labels as the images were.

    Shape: (n,) or (n, K) → float32 (n, K).
    """
    targets = labels.float() if labels.ndim == 2 else functional.one_hot(labels, num_classes).float()
    keep = on_device(torch.from_numpy(mixing.keep.astype(np.float32)), labels.device)[:, None]
    others = targets[on_device(torch.from_numpy(mixing.partners), labels.device)]
    return keep * targets + (1.0 - keep) * others


def _takes_cutmix(keys: NDArray[np.int64], augment: AugmentConfig) -> NDArray[np.bool_]:
    if not augment.mixup or not augment.cutmix:
        return np.full(len(keys), bool(augment.cutmix))
    return uniforms(keys, "mixup or cutmix", count=1)[:, 0] < 0.5


def _partners(keys: NDArray[np.int64], *, group_images: int) -> NDArray[np.int64]:
    positions = np.arange(len(keys), dtype=np.int64)
    starts = positions - positions % group_images
    sizes = np.minimum(group_images, len(keys) - starts)  # the last group of an odd batch may be shorter
    draws = uniforms(keys[starts], "partner", count=1)[:, 0]
    turns = 1 + np.floor(draws * np.maximum(sizes - 1, 1)).astype(np.int64)
    return starts + (positions - starts + turns) % sizes


def _rectangles(
    keys: NDArray[np.int64], area: NDArray[np.float64], *, height: int, width: int
) -> NDArray[np.int64]:
    """Return rectangles of the image's shape around a uniform centre, cut off at the border."""
    centre = uniforms(keys, "cutmix rectangle", count=2)
    x, y = np.floor(centre[:, 0] * width), np.floor(centre[:, 1] * height)
    half_width = np.floor(np.sqrt(area) * width) // 2
    half_height = np.floor(np.sqrt(area) * height) // 2
    left, right = np.clip(x - half_width, 0, width), np.clip(x + half_width, 0, width)
    top, bottom = np.clip(y - half_height, 0, height), np.clip(y + half_height, 0, height)
    return np.stack([left, top, right, bottom], axis=1).astype(np.int64)
