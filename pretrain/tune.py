"""Finds the largest micro-batch that fits, by rehearsing steps on blank images before any data is read.

Ranks differ: one device may hold more than the others. A rank that runs out of memory in the middle of a step
leaves its peers waiting in a collective, so each size is tried by every rank alone first, and all agree on
what they found before they take the step together.
"""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from coatnet.config import UserError
from coatnet.config.batches import MOST_ON_CORES
from coatnet.runtime.endings import RankError
from coatnet.runtime.memory import available_memory
from pretrain.trainer import Trainer

_SPARE = 0.92  # the share of a GPU's memory that may be in use: fragmentation takes the rest
_GIB = 2**30
# Of torch's allocator and oneDNN on a CPU; on a GPU of the driver, Triton and NCCL, and of cuBLAS and cuDNN.
# There is a class of error for torch's own allocator on a GPU alone.
_NO_MEMORY = ("can't allocate memory", "could not create a primitive", "out of memory", "ALLOC_FAILED")


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
        ranks = trainer.engine.ranks
        short = {ranks.rank: _memory_of(ranks.device)}
        raise RankError(_too_large(short, image_size=image_size, samples=samples)) from None


def largest_micro_batch(
    trainer: Trainer, *, image_size: int, shares: Sequence[int], group_images: int
) -> int:
    """Return the largest micro-batch, in whole groups, that leaves memory to spare everywhere.

    Args:
        trainer: whose steps are tried.
        image_size: of the run's largest images.
        shares: a rank's, of all the run's global batches; each must be cut evenly, or be smaller.
        group_images: of batch norm.

    Raises:
        UserError: not even one group fits.
    """
    ranks, memory, best = trainer.engine.ranks, _Memory(trainer.engine.ranks.device), 0
    trainer.micro_batch = None  # or steps of other sizes would be cut by it
    for size in range(group_images, max(shares) + 1, group_images):
        if any(share % min(size, share) for share in shares):
            continue
        if ranks.device_type == "cpu" and size > max(MOST_ON_CORES, group_images):
            break
        lacking = memory.lacking(size) or _lacking_alone(trainer, image_size=image_size, samples=size)
        short = {rank: words for rank, words in enumerate(ranks.gather(lacking)) if words}
        if short and best == 0:
            remedy = "a smaller norm.group_images"  # a group is the smallest size that was tried
            raise UserError(_too_large(short, image_size=image_size, samples=size, remedy=remedy))
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

    def lacking(self, size: int) -> str | None:
        """Return what there is of it if a larger size will not fit, on a line through the last two."""
        if len(self._points) < 2:
            return None
        (before, less), (last, used) = self._points[-2:]
        fits = used + (used - less) * (size - last) / (last - before) < _SPARE
        return None if fits else _memory_of(self._device)

    def _used(self) -> float:
        if not self._known:
            return 0.0
        return torch.cuda.max_memory_reserved(self._device) / torch.cuda.mem_get_info(self._device)[1]


def _lacking_alone(trainer: Trainer, *, image_size: int, samples: int) -> str | None:
    """Take a micro-batch on this rank alone; return what memory there is where it does not fit."""
    device, found = trainer.engine.ranks.device, None
    try:
        trainer.rehearse_alone(image_size=image_size, samples=samples)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        found = _memory_of(device)
    if found is not None and device.type == "cuda":
        torch.cuda.empty_cache()  # not before: the error's frames hold what was computed
    return found


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _memory_of(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{device}: {(total - free) / _GIB:.1f} of {total / _GIB:.1f} GiB in use"
    own, memory = psutil.Process().memory_info().rss / _GIB, available_memory()
    return f"{own:.1f} GiB of its own, {memory.free / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"


def _too_large(
    short: dict[int, str],
    *,
    image_size: int,
    samples: int,
    remedy: str = "a smaller one or tune.micro_batch=auto",
) -> str:
    where = ", ".join(f"{rank} ({memory})" for rank, memory in short.items())
    return (
        f"out of memory on rank {where} with train.micro_batch={samples} at {image_size} px; give {remedy}, "
        "activation checkpointing "
        "(train.activation_checkpointing=[S1,S2]), or a higher zero.stage"
    )
