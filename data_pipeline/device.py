"""Transforms that run by batch on the device: from uint8 images to normalised ones and their targets.

A pure function of (images, labels, keys, config). An image's result depends on no other image, except for
mixup and cutmix, whose partners come from the same group of `group_images` consecutive images.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from coatnet.runtime.on_device import on_device
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.erasing import erase
from data_pipeline.mixing import draw_mixing, mix_images, mix_targets
from data_pipeline.randaugment import randaugment

_PICTURES = 16


class TrainTransform:
    """What both stages make of some rows of a loader's batch before the model takes them."""

    def __init__(
        self, augment: AugmentConfig, *, device: torch.device, num_classes: int, group_images: int
    ) -> None:
        self._augment = augment
        self._device, self._num_classes, self._group_images = device, num_classes, group_images

    def __call__(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return images and targets as `augmented` does, the samples' keys, and a tail's weights.

        All lie on the device.
        """
        parts = batch.images, batch.labels, batch.keys
        images, labels, keys = (on_device(part[rows], self._device) for part in parts)
        made = augmented(
            images,
            labels,
            batch.keys[rows],
            self._augment,
            num_classes=self._num_classes,
            group_images=self._group_images,
        )
        weights = None if batch.tail is None else on_device(batch.tail.weights[rows], self._device)
        return *made, keys, weights

    def pictures(self, batch: Batch) -> Tensor:
        """Return what the model sees of a batch's first samples.

        Shape: float (n, H, W, 3) from 0 to 1, on the CPU.
        """
        groups = -(-_PICTURES // self._group_images) * self._group_images  # mixing needs whole groups
        pixels, *_ = self(batch, slice(0, min(groups, len(batch))))
        return as_pictures(pixels[:_PICTURES], self._augment).cpu()


def augmented(
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    augment: AugmentConfig,
    *,
    num_classes: int,
    group_images: int,
) -> tuple[Tensor, Tensor]:
    """Make of a training batch what the model takes, on the device that holds `images`.

    `keys` are best left on the CPU, where the random numbers are drawn: on a GPU they cost a wait.

    Shape: images uint8 (n, H, W, 3), labels (n,) or (n, K), keys (n,) → float32 (n, 3, H, W) in
    channels_last, and the labels or, after mixing, float targets (n, K).
    """
    host_keys = keys.cpu().numpy().astype(np.int64, copy=False)
    if augment.randaugment_n:
        images = randaugment(images, host_keys, n=augment.randaugment_n, m=augment.randaugment_m)
    pixels = normalise(images, mean=augment.mean, std=augment.std)
    if augment.erasing:
        pixels = erase(pixels, host_keys, probability=augment.erasing)
    if augment.mixup or augment.cutmix:
        height, width = images.shape[1:3]
        mixing = draw_mixing(host_keys, augment, group_images=group_images, height=height, width=width)
        pixels = mix_images(pixels, mixing)
        labels = mix_targets(labels, mixing, num_classes=num_classes)
    return pixels, labels


def as_pictures(pixels: Tensor, augment: AugmentConfig) -> Tensor:
    """Undo the normalisation, to look at what the model sees.

    Shape: (n, 3, H, W) → (n, H, W, 3) from 0 to 1.
    """
    scale, shift = (torch.tensor(values, device=pixels.device) for values in (augment.std, augment.mean))
    return pixels.permute(0, 2, 3, 1).mul(scale).add(shift).clamp(0.0, 1.0)


def normalise(images: Tensor, *, mean: list[float], std: list[float]) -> Tensor:
    """Scale bytes to zero mean and unit variance of the training corpus.

    Shape: uint8 (n, H, W, 3) → float32 (n, 3, H, W), a view of NHWC memory (channels_last).
    """
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32).mul_(scale).add_(shift).permute(0, 3, 1, 2)


@lru_cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Make both once: a copy of numbers to a GPU waits for all that the GPU has to do."""
    scale = torch.tensor([1.0 / (255.0 * value) for value in std], device=device)
    return scale, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
