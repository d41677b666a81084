"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Keep the newest `last`, those of every `every_steps` steps, and the first with the best figure.

    Whatever is asked, one is deleted only while two newer ones have been verified.
    """

    last: int = 3
    every_steps: int | None = None
    best: str | None = None

    def superfluous(
        self, steps: Sequence[int], *, verified: set[int], figures: dict[int, float] | None = None
    ) -> list[int]:
        """Return the steps to delete, oldest first.

        Args:
            steps: all committed steps, oldest first.
            verified: those whose bytes were checked after they were written.
            figures: the `best` figure by step, higher is better.
        """
        kept = set(steps[-self.last :])
        if self.every_steps:
            kept |= {step for step in steps if step % self.every_steps == 0}
        if figures:
            kept.add(max(figures, key=lambda step: (figures[step], -step)))
        return [
            step for step in steps if step not in kept and sum(1 for newer in verified if newer > step) >= 2
        ]
