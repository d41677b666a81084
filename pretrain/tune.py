"""Finds the largest micro-batch that fits, by rehearsing steps on blank images before any data is read.

Ranks differ: one device may hold more than the others. A rank that runs out of memory in the middle of a step
leaves its peers waiting in a collective, so each size is tried by every rank alone first, and all agree on
what they found before they take the step together. Where the passes need all ranks (stage 3, batch norm over
ranks) only a size is tried that every rank expects to fit.
"""

from __future__ import annotations

import torch

from coatnet.config import UserError
from coatnet.runtime.opening import RankError
from pretrain.trainer import Trainer

# On a CPU there is no limit that could be run into safely.
_MOST_ON_CPU = 64
_SPARE = 0.92  # the share of a GPU's memory that may be in use: fragmentation takes the rest
# torch's allocator and oneDNN on a CPU; neither has an error class for it.
_NO_MEMORY_ON_CPU = ("can't allocate memory", "could not create a primitive")


def rehearse(trainer: Trainer, *, image_size: int, samples: int) -> None:
    """Take one refused step.

    Raises:
        RankError: out of memory; the message says what to do.
    """
    try:
        trainer.rehearse(image_size=image_size, samples=samples)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        text = _too_large([trainer.engine.ranks.rank], image_size=image_size, samples=samples)
        raise RankError(text) from None


def largest_micro_batch(
    trainer: Trainer, *, image_size: int, share: int, group_images: int, alone: bool = True
) -> int:
    """Return the largest divisor of a rank's share, in whole groups, that leaves memory to spare everywhere.

    Args:
        alone: a rank can take its passes without the others.

    Raises:
        UserError: not even one group fits.
    """
    ranks, memory, best = trainer.engine.ranks, _Memory(trainer.engine.ranks.device), 0
    for size in (size for size in range(group_images, share + 1, group_images) if share % size == 0):
        if ranks.device_type == "cpu" and size > max(_MOST_ON_CPU, group_images):
            break
        fits = memory.expects(size)
        if fits and alone:
            fits = _fits_alone(trainer, image_size=image_size, samples=size)
        short = [rank for rank, fitting in enumerate(ranks.gather(fits)) if not fitting]
        if short and best == 0:
            raise UserError(_too_large(short, image_size=image_size, samples=size))
        if short:
            break
        rehearse(trainer, image_size=image_size, samples=size)
        memory.saw(size)
        if best and ranks.any(memory.is_short):
            break
        best = size
    return best


class _Memory:
    """A GPU's memory as it fills with the micro-batch; of a CPU nothing is known."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._known = device, device.type == "cuda"
        self._points = [(0, self._used())]

    @property
    def is_short(self) -> bool:
        """True when the last size left too little to spare."""
        return self._points[-1][1] > _SPARE

    def saw(self, size: int) -> None:
        """Note what a step of this size took at most."""
        self._points.append((size, self._used()))

    def expects(self, size: int) -> bool:
        """Say whether a larger size will fit, on a line through the last two."""
        if len(self._points) < 2:
            return True
        (before, less), (last, used) = self._points[-2:]
        return used + (used - less) * (size - last) / (last - before) < _SPARE

    def _used(self) -> float:
        if not self._known:
            return 0.0
        return torch.cuda.max_memory_reserved(self._device) / torch.cuda.mem_get_info(self._device)[1]


def _fits_alone(trainer: Trainer, *, image_size: int, samples: int) -> bool:
    try:
        trainer.rehearse_alone(image_size=image_size, samples=samples)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if trainer.engine.ranks.device_type == "cuda":
            torch.cuda.empty_cache()
        return False
    return True


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in _NO_MEMORY_ON_CPU
    )


def _too_large(ranks: list[int], *, image_size: int, samples: int) -> str:
    where = ", ".join(map(str, ranks))
    return (
        f"out of memory on rank {where} with train.micro_batch={samples} at {image_size} px; give a smaller "
        "one or tune.micro_batch=auto, activation checkpointing "
        "(train.activation_checkpointing=[S1,S2]), or a higher zero.stage"
    )
