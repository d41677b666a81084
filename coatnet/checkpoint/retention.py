"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coatnet.checkpoint.format import CheckpointError, read_json
from coatnet.checkpoint.inspection import MANIFEST


@dataclass(frozen=True)
class Retention:
    """Keep the newest `last`, the first from each multiple of `every_steps` on, and the best by a figure.

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
            figures: the `best` figure by step, higher is better, those that are known.
        """
        kept = set(steps[-self.last :])
        if self.every_steps:
            # A save by the clock hardly ever falls on a multiple.
            firsts = {step // self.every_steps: step for step in reversed(steps)}
            kept |= {step for multiple, step in firsts.items() if multiple}
        if figures and (finite := [step for step in figures if math.isfinite(figures[step])]):
            kept.add(max(finite, key=lambda step: (figures[step], -step)))
        return [
            step for step in steps if step not in kept and sum(1 for newer in verified if newer > step) >= 2
        ]


class Figures:
    """The figure that says which checkpoint is the best, as their manifests tell it."""

    def __init__(self, name: str | None, *, alarm: Callable[[str], None]) -> None:
        """Know none yet; without a name there is none to know."""
        self._name, self._alarm = name, alarm
        self._known: dict[Path, float] = {}  # a manifest of a thousand ranks is a megabyte

    def of(self, figures: Mapping[str, float]) -> float:
        """Return the one among others; not a number where it is missing."""
        return float(figures.get(self._name or "", math.nan))

    def read(self, checkpoints: Mapping[int, Path]) -> dict[int, float]:
        """Return those of checkpoints, by step, not a number where one has none; broken ones are told."""
        for path in checkpoints.values() if self._name else ():
            if path not in self._known:
                try:
                    facts = read_json(path / MANIFEST).get("facts", {})
                except CheckpointError as error:
                    self._alarm(f"{error}; it stays, and nobody knows whether it is the best")
                    continue
                self._known[path] = self.of(facts.get("figures", {}))
        return {step: self._known[path] for step, path in checkpoints.items() if path in self._known}

    def forget(self, checkpoint: Path) -> None:
        """Read this one's anew."""
        self._known.pop(checkpoint, None)
