"""What is looked at beside the loss: equal weights, equal speed, memory swept at the same time. No file."""

from __future__ import annotations

import gc
import statistics
from collections import deque
from typing import Any

import torch
from torch import nn

from coatnet.runtime.ranks import Ranks
from coatnet.training.distrust import outvoted
from pretrain.sections import GuardConfig

_STRAGGLER_STEPS = 50


class Health:
    """Looks every so many steps, at the same ones on every rank."""

    def __init__(self, config: GuardConfig, *, ranks: Ranks, stage: int) -> None:
        self._config, self._ranks, self._stage = config, ranks, stage
        self._seconds: deque[list[float]] = deque(maxlen=_STRAGGLER_STEPS)
        # A collection at a random moment of one rank makes all others wait for it.
        gc.disable()
        gc.freeze()

    def after_step(self, step: int, seconds: list[float]) -> list[dict[str, Any]]:
        """Sweep memory when it is time; return the ranks that have been slower than the others until now.

        Args:
            step: its number.
            seconds: the ranks' own times in it.

        Returns:
            Of each slow rank its number, its median time and that of the others.
        """
        self._seconds.append(seconds)
        if step % self._config.collect_every == 0:
            gc.collect()
        is_time = step % _STRAGGLER_STEPS == 0 and len(self._seconds) == _STRAGGLER_STEPS
        return self._stragglers() if is_time and len(seconds) > 1 else []

    def compares_weights_at(self, step: int) -> bool:
        """Tell whether the ranks' weights are to be compared after a step."""
        return self._config.digest_every > 0 and step % self._config.digest_every == 0

    def differing_weights(self, model: nn.Module) -> dict[str, Any] | None:
        """Compare the ranks' copies of the weights; one that differs was corrupted without a word.

        At stage 3 only what every rank holds (the running statistics) can be compared.

        Returns:
            None where all are equal; else the ranks that differ from the majority, none where there is no
            majority, and all digests.
        """
        if self._ranks.world_size == 1:
            return None
        digests = self._ranks.gather(weight_digest(model, parameters=self._stage < 3))
        wrong = outvoted(digests)
        return None if wrong is None else {"ranks": wrong, "digests": digests}

    def _stragglers(self) -> list[dict[str, Any]]:
        medians = [statistics.median(rank) for rank in zip(*self._seconds, strict=True)]
        found = []
        for rank, own in enumerate(medians):
            usual = statistics.median(medians[:rank] + medians[rank + 1 :])
            if own > self._config.straggler_ratio * usual:
                found.append({"straggler": rank, "seconds": round(own, 4), "usual": round(usual, 4)})
        return found


@torch.no_grad()
def weight_digest(model: nn.Module, *, parameters: bool = True) -> int:
    """Return a sum over the bit patterns of weights and statistics: any single flipped bit changes it."""
    sums = []
    tensors = [*(model.parameters() if parameters else ()), *model.buffers()]
    for number, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            word = torch.int16 if tensor.element_size() == 2 else torch.int32
            bits = tensor.detach().contiguous().view(word)
            sums.append(bits.sum(dtype=torch.int64) * (2 * number + 1))
    return int(torch.stack(sums).sum()) if sums else 0  # one wait for a GPU, not one for each tensor
