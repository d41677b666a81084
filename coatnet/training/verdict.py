"""What a step is taken for, and when too many were refused. Knows no guard."""

from __future__ import annotations

from dataclasses import dataclass

from coatnet.config import UserError
from coatnet.training.recorder import StepResult
from coatnet.training.state import RunState


@dataclass(frozen=True)
class Verdict:
    """What to make of a step.

    Attributes:
        event: kind for the run's log; None when there is nothing to say.
        rollback: go back to before step `step` and leave out `samples`.
        step: the first step that is not trusted.
        samples: positions of the steps that are not trusted.
        ends: why the run ends, once the step is recorded; None where it goes on.
    """

    event: str | None = None
    score: float = 0.0
    rollback: bool = False
    step: int = 0
    samples: range = range(0)
    ends: str | None = None

    def check(self) -> None:
        """End the run where it cannot go on.

        Raises:
            UserError: it cannot.
        """
        if self.ends is not None:
            raise UserError(self.ends)


def too_many_refused(state: RunState, result: StepResult, *, most: int, limit: str) -> str | None:
    """Return why to give up where `most` steps in a row were refused: nothing is learned any more."""
    if state.skipped_in_a_row < most:
        return None
    return (
        f"{state.skipped_in_a_row} steps in a row were refused, the last at step {state.step} (loss "
        f"{result.loss:g}, gradient norm {result.gradient_norm:g}), {limit}; lower "
        "optimizer.learning_rate, or look at the samples that the run's events name"
    )
