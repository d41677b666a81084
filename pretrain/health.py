"""What is looked at beside the loss: equal weights, equal speed, memory swept at the same time. No file."""

from __future__ import annotations

import gc
import statistics
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coatnet.runtime.ranks import Ranks
from pretrain.guard_config import GuardConfig
from pretrain.state import State
from pretrain.trainer import PretrainResult

_STRAGGLER_STEPS = 50


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a rank: an event's kind and its fields."""

    kind: str
    fields: dict[str, Any]


class Health:
    """Checks that run every so many steps, at the same step on every rank."""

    def __init__(self, config: GuardConfig, *, ranks: Ranks, stage: int) -> None:
        self._config, self._ranks, self._stage = config, ranks, stage
        self._seconds: deque[list[float]] = deque(maxlen=_STRAGGLER_STEPS)
        # A collection at a random moment of one rank makes all others wait for it.
        gc.disable()
        gc.freeze()

    def check(self, model: nn.Module, state: State, result: PretrainResult) -> list[Finding]:
        """Look after the step that led to `state`."""
        findings = []
        self._seconds.append(result.seconds)
        if state.step % self._config.collect_every == 0:
            gc.collect()
        if state.step % _STRAGGLER_STEPS == 0:
            findings += self._stragglers()
        if self._config.digest_every and state.step % self._config.digest_every == 0:
            findings += self.compare_weights(model)
        return findings

    def compare_weights(self, model: nn.Module) -> list[Finding]:
        """Compare the ranks' copies of the weights; one that differs was corrupted without a word.

        Which one it is a majority tells; where there is none, no rank can be named.
        At stage 3 only what every rank holds (the running statistics) can be compared.
        """
        if self._ranks.world_size == 1:
            return []
        digests = self._ranks.gather(weight_digest(model, parameters=self._stage < 3))
        common, votes = Counter(digests).most_common(1)[0]
        if votes == self._ranks.world_size:
            return []
        decided = 2 * votes > self._ranks.world_size
        wrong = [rank for rank, digest in enumerate(digests) if decided and digest != common]
        return [Finding("silent_corruption", {"ranks": wrong, "digests": digests})]

    def _stragglers(self) -> list[Finding]:
        if self._ranks.world_size == 1 or len(self._seconds) < _STRAGGLER_STEPS:
            return []
        medians = [statistics.median(rank) for rank in zip(*self._seconds, strict=True)]
        usual = statistics.median(medians)
        return [
            Finding("straggler", {"straggler": rank, "seconds": round(own, 4), "usual": round(usual, 4)})
            for rank, own in enumerate(medians)
            if own > self._config.straggler_ratio * usual
        ]


@torch.no_grad()
def weight_digest(model: nn.Module, *, parameters: bool = True) -> int:
    """Return a sum over the bit patterns of weights and statistics: any single flipped bit changes it."""
    total = torch.zeros((), dtype=torch.int64)
    tensors = [*(model.parameters() if parameters else ()), *model.buffers()]
    for number, tensor in enumerate(tensors):
        if tensor.is_floating_point():
            bits = (
                tensor.detach().contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
            )
            total += (bits.sum(dtype=torch.int64) * (2 * number + 1)).cpu()
    return int(total)
