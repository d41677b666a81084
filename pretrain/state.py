"""Where a run stands. Everything here is plain JSON and travels in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class State:
    """The run's position and the little history that later decisions depend on.

    Attributes:
        samples_seen: the only clock.
        step: optimizer steps tried, skipped ones included.
        applied_steps: those that changed the weights.
        skipped_in_a_row: until now.
        losses, gradient_norms: of the last accepted steps; the guard's measure of what is normal.
        figures: of the last evaluation.
    """

    samples_seen: int = 0
    step: int = 0
    applied_steps: int = 0
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def advance(self, *, samples: int, applied: bool) -> None:
        """Move on by one step."""
        self.samples_seen += samples
        self.step += 1
        self.applied_steps += applied
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1

    def become(self, other: State) -> None:
        """Take over another state, keeping the object that everyone holds."""
        self.__dict__.update(other.__dict__)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's facts."""
        return asdict(self)
