"""Statistics of the stages' outputs, now and then: a stage that dies or explodes is seen before the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from coatnet.model.network import CoAtNet

_EVERY_STEPS = 100


class ActivationStatistics:
    """Looks at what the stages put out at the first step of a life and at every hundredth."""

    def __init__(self, model: CoAtNet) -> None:
        self._model = model
        self._found: dict[str, Tensor] = {}
        self._due = True

    def before_step(self, step: int) -> None:
        """Begin to look if the step is one of those (`step` being its number when it is done)."""
        if self._due or step % _EVERY_STEPS == 0:
            self._due, self._model.watch = False, self._note

    def after_step(self) -> dict[str, float]:
        """Return mean, deviation and largest magnitude of every stage, or nothing for most steps."""
        self._model.watch = None
        found, self._found = self._found, {}
        return dict(zip(found, torch.stack([*found.values()]).tolist(), strict=True)) if found else {}

    @torch.no_grad()
    def _note(self, stage: str, output: Tensor) -> None:
        values = output.detach().float()
        deviation, mean = torch.std_mean(values)
        for name, value in (("mean", mean), ("deviation", deviation), ("largest", values.abs().amax())):
            self._found[f"activations/{stage}/{name}"] = value
