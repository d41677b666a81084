"""Judges every step: refused, spiking, or fine. All ranks judge alike, by the results and the state alone.

Every step that was taken enters the history, a spike too: a median bears anything in less than half of its
window, and a level that fills more than half is the usual one by then.
"""

from __future__ import annotations

import math
import statistics

from coatnet.config.plain_text import number_of
from coatnet.training.verdict import Verdict, too_many_refused
from pretrain.sections import GuardConfig
from pretrain.state import State
from pretrain.trainer import PretrainResult, Veto

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
# A loss that hardly moves has a tiny deviation: less than this share of the median is never a spike.
_LEAST_DEVIATION = 0.01


class Guard:
    """Knows what losses and gradient norms are normal by those of the last steps."""

    def __init__(self, config: GuardConfig, *, rollbacks: int = 0) -> None:
        self._config = config
        self._rollbacks = rollbacks

    def veto(self, state: State) -> Veto | None:
        """Return what refuses a step by its loss before anything changes, where spikes are to be skipped."""
        if self._config.spike != "skip":
            return None
        return lambda loss: self._is_spike(robust_score(loss, state.losses), state.losses)

    def rolled_back(self) -> None:
        """Count a rollback that a verdict asked for: there was a checkpoint to go back to."""
        self._rollbacks += 1

    def judge(self, result: PretrainResult, state: State) -> Verdict:
        """Judge the step that led to `state`, and remember an accepted one."""
        if not result.applied:
            veto = self.veto(state)
            spiked = veto is not None and math.isfinite(result.loss) and veto(result.loss)
            limit = "as many as guard.max_skipped allows"
            if spiked:
                limit += "; guard.spike=record gets used to other data"
            ends = too_many_refused(state, result, most=self._config.max_skipped, limit=limit)
            return Verdict("skipped_spike" if spiked else "skipped_step", ends=ends)
        score = max(
            robust_score(result.loss, state.losses), robust_score(result.gradient_norm, state.gradient_norms)
        )
        is_spike = self._is_spike(score, state.losses)
        for history, value in ((state.losses, result.loss), (state.gradient_norms, result.gradient_norm)):
            history.append(value)
            del history[: -self._config.spike_window]
        if not is_spike:
            state.spiking = 0
            return Verdict(score=score)
        if state.spiking == 0:
            state.spike_step, state.spike_begin = state.step, state.samples_seen - result.samples
        state.spiking += 1
        return self._on_spike(state, score=score)

    def has_got_used(self, spiking: int) -> bool:
        """Tell whether so many spikes in a row, which have just ended, are what counts as usual by now."""
        return spiking * 2 >= self._config.spike_window

    def _on_spike(self, state: State, *, score: float) -> Verdict:
        if self._config.spike != "rollback" or state.spiking < self._config.spike_steps:
            return Verdict("spike", score=score)
        if self._rollbacks >= self._config.max_rollbacks:
            ends = (
                f"a loss spike at step {state.step} (robust z-score {score:.0f}) after "
                f"{number_of(self._rollbacks, 'rollback')}, as many as guard.max_rollbacks allows; lower "
                "optimizer.learning_rate, or let the guard get used to other data by guard.spike=record"
            )
            return Verdict("spike", score=score, ends=ends)
        return Verdict(
            "rollback",
            score=score,
            rollback=True,
            step=state.spike_step,
            samples=range(state.spike_begin, state.samples_seen),
        )

    def _is_spike(self, score: float, history: list[float]) -> bool:
        return score > self._config.spike_score and len(history) * 2 >= self._config.spike_window


def robust_score(value: float, history: list[float]) -> float:
    """Return how many deviations a value lies above the median of a history; both by robust statistics."""
    if not history or not math.isfinite(value):
        return math.inf if history else 0.0
    median = statistics.median(history)
    spread = _MAD_TO_DEVIATION * statistics.median(abs(one - median) for one in history)
    return (value - median) / max(spread, _LEAST_DEVIATION * abs(median), 1e-12)
