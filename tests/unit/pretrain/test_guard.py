"""The guard by results alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coatnet.config import UserError
from pretrain.guard import Guard, robust_score
from pretrain.guard_config import GuardConfig
from pretrain.state import State
from pretrain.trainer import PretrainResult


def result(loss: float, *, norm: float = 1.0, applied: bool = True) -> PretrainResult:
    return PretrainResult(
        samples=8,
        losses=[loss, loss],
        seconds=[0.1, 0.1],
        gradient_norm=norm,
        learning_rate=1e-3,
        applied=applied,
        digest=0,
        wishes=[0, 0],
    )


def after_steps(guard: Guard, count: int) -> State:
    state = State()
    for number in range(count):
        taken = result(1.0 + 0.01 * (number % 7))
        state.advance(samples=taken.samples, applied=True, digest=0)
        assert guard.judge(taken, state).event is None
    return state


def step(guard: Guard, state: State, taken: PretrainResult):  # type: ignore[no-untyped-def]
    state.advance(samples=taken.samples, applied=taken.applied, digest=0)
    return guard.judge(taken, state)


def test_a_spike_is_far_above_the_median_and_does_not_enter_the_history() -> None:
    guard = Guard(GuardConfig(spike_window=20))
    state = after_steps(guard, 20)
    assert step(guard, state, result(9.0)).event == "spike"
    assert 9.0 not in state.losses
    assert step(guard, state, result(1.03)).event is None


def test_nothing_is_judged_before_half_of_the_window_is_known() -> None:
    guard = Guard(GuardConfig(spike_window=20))
    assert step(guard, after_steps(guard, 8), result(50.0)).event is None


def test_a_rollback_names_the_first_bad_step_and_its_samples() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", spike_steps=2))
    state = after_steps(guard, 10)
    assert not step(guard, state, result(9.0)).rollback
    verdict = step(guard, state, result(9.0))
    assert verdict.rollback and verdict.step == 11 and verdict.samples == range(80, 96)


def test_a_rollback_over_a_short_step_names_the_samples_of_all() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", spike_steps=2))
    state = after_steps(guard, 10)
    assert not step(guard, state, result(9.0)).rollback
    verdict = step(guard, state, replace(result(9.0), samples=3))
    assert verdict.rollback and verdict.samples == range(80, 91)


def test_a_rollback_over_a_refused_step_begins_at_the_first_that_spiked() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", spike_steps=2))
    state = after_steps(guard, 10)
    assert not step(guard, state, result(9.0)).rollback
    assert step(guard, state, result(math.nan, norm=math.inf, applied=False)).event == "skipped_step"
    verdict = step(guard, state, result(9.0))
    assert verdict.rollback and verdict.step == 11 and verdict.samples == range(80, 104)


def test_a_spike_goes_on_over_a_resume_in_the_middle_of_it() -> None:
    config = GuardConfig(spike_window=10, spike="rollback", spike_steps=2)
    guard = Guard(config)
    state = after_steps(guard, 10)
    assert not step(guard, state, result(9.0)).rollback
    resumed = State(**state.to_json())
    verdict = step(Guard(config), resumed, result(9.0))
    assert verdict.rollback and verdict.step == 11 and verdict.samples == range(80, 96)


def test_too_many_rollbacks_stop_the_run_with_advice() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", max_rollbacks=1), rollbacks=1)
    with pytest.raises(UserError, match=r"guard\.max_rollbacks"):
        step(guard, after_steps(guard, 10), result(9.0))


def test_refused_steps_are_counted_and_too_many_in_a_row_stop_the_run() -> None:
    guard = Guard(GuardConfig(max_skipped=3))
    state = after_steps(guard, 5)
    refused = result(math.nan, norm=math.inf, applied=False)
    assert [step(guard, state, refused).event for _ in range(2)] == ["skipped_step"] * 2
    assert state.applied_steps == 5 and state.step == 7
    with pytest.raises(UserError, match=r"guard\.max_skipped"):
        step(guard, state, refused)


def test_the_veto_refuses_a_spiking_loss_before_anything_changes() -> None:
    guard = Guard(GuardConfig(spike="skip", spike_window=10))
    veto = guard.veto(after_steps(guard, 10))
    assert veto is not None and veto(9.0) and not veto(1.02)
    assert Guard(GuardConfig(spike="record")).veto(State()) is None


def test_a_robust_score_ignores_a_few_wild_values() -> None:
    history = [1.0, 1.1, 0.9, 1.05, 0.95, 100.0, 1.0]
    assert robust_score(2.0, history) > 5
    assert abs(robust_score(1.0, history)) < 1
    assert robust_score(math.nan, history) == math.inf
