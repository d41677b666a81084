"""An exponential moving average over named tensors: whole weights, or the pieces that a ZeRO rank owns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

# The average would remember its start for 1/(1−decay) steps: while young it forgets faster.
_YOUNG_STEPS = 10


class Ema:
    """fp32 averages of tensors, by name.

    Source: arXiv 2106.04803, Table 10 (decay 0.9999); the ramp min(decay, (1+t)/(10+t)) is TensorFlow's
        ExponentialMovingAverage.
    """

    def __init__(self, decay: float, tensors: Mapping[str, Tensor]) -> None:
        """Start at the present values."""
        assert 0.0 < decay < 1.0, decay
        self.decay = decay
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Move towards `tensors` after optimizer step `step` (from 1)."""
        weight = 1 - min(self.decay, (1 + step) / (_YOUNG_STEPS + step))
        averages = list(self.tensors.values())
        current = [tensors[name].detach().float() for name in self.tensors]
        if averages:
            torch._foreach_lerp_(averages, current, weight)

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Put the averages into `tensors` inside the block; the former values come back bit-equal."""
        former = {name: tensors[name].detach().clone() for name in self.tensors}
        try:
            for name, average in self.tensors.items():
                tensors[name].copy_(average)
            yield
        finally:
            for name, value in former.items():
                tensors[name].copy_(value)
