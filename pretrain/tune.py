"""Finds the largest micro-batch that fits, by rehearsing steps on blank images before any data is read."""

from __future__ import annotations

import torch

from coatnet.config import UserError
from pretrain.trainer import Trainer

# On a CPU there is no limit that could be run into safely.
_MOST_ON_CPU = 64
_SPARE = 0.92  # the share of a GPU's memory that may be in use: fragmentation takes the rest


def rehearse(trainer: Trainer, *, image_size: int, samples: int) -> None:
    """Take one refused step.

    Raises:
        UserError: out of memory; the message says what to do.
    """
    try:
        trainer.rehearse(image_size=image_size, samples=samples)
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of memory with train.micro_batch={samples} at {image_size} px; give a smaller one or "
            "tune.micro_batch=auto, activation checkpointing (train.activation_checkpointing=[S1,S2]), or a "
            "higher zero.stage"
        ) from None


def largest_micro_batch(trainer: Trainer, *, image_size: int, share: int, group_images: int) -> int:
    """Return the largest divisor of a rank's share, in whole groups, that leaves memory to spare everywhere.

    Raises:
        UserError: not even one group fits.
    """
    ranks = trainer.engine.ranks
    sizes = [size for size in range(group_images, share + 1, group_images) if share % size == 0]
    best = 0
    for size in sizes:
        if ranks.device_type == "cpu" and size > max(_MOST_ON_CPU, group_images):
            break
        if ranks.any(not _fits(trainer, image_size=image_size, samples=size)):
            break
        best = size
    if best == 0:
        rehearse(trainer, image_size=image_size, samples=group_images)
        return group_images
    return best


def _fits(trainer: Trainer, *, image_size: int, samples: int) -> bool:
    device = trainer.engine.ranks.device
    try:
        trainer.rehearse(image_size=image_size, samples=samples)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    if device.type != "cuda":
        return True
    return torch.cuda.max_memory_reserved(device) < _SPARE * torch.cuda.mem_get_info(device)[1]
