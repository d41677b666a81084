"""Where a run stands. Everything here is plain JSON and travels in every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunState:
    """The position of a run.

    Attributes:
        samples_seen: the only clock.
        step: optimizer steps tried, skipped ones included.
        applied_steps: those that changed the weights.
        skipped_in_a_row: until now.
        bad_samples: that could not be used in the steps up to here.
        figures: what an evaluation found at this very step; empty where there was none.
        image_size: of the last step.
        unevaluated: a stop came before the evaluation of this very step was done; the next life does it.
    """

    samples_seen: int = 0
    step: int = 0
    applied_steps: int = 0
    skipped_in_a_row: int = 0
    bad_samples: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    image_size: int = 0
    unevaluated: bool = False

    def advance(self, *, samples: int, applied: bool, bad: int) -> None:
        """Move on by one step, of which no evaluation has found anything yet."""
        self.samples_seen += samples
        self.step += 1
        self.applied_steps += applied
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        self.bad_samples += bad
        self.figures = {}  # another step's must not make this one's checkpoint the best

    def become(self, other: RunState) -> None:
        """Take over another state, keeping the object that everyone holds."""
        self.__dict__.update(other.__dict__)
