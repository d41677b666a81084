"""The guard by results alone."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest

from coatnet.config import UserError
from pretrain.guard import Guard, robust_score
from pretrain.sections import GuardConfig
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
        state.advance(samples=taken.samples, applied=True, digest=0, bad=0)
        assert guard.judge(taken, state).event is None
    return state


def step(guard: Guard, state: State, taken: PretrainResult):  # type: ignore[no-untyped-def]
    state.advance(samples=taken.samples, applied=taken.applied, digest=0, bad=0)
    return guard.judge(taken, state)


def test_a_spike_is_far_above_the_median_and_hardly_moves_it() -> None:
    guard = Guard(GuardConfig(spike_window=20))
    state = after_steps(guard, 20)
    assert step(guard, state, result(9.0)).event == "spike"
    assert step(guard, state, result(1.03)).event is None
    assert step(guard, state, result(2.0)).event == "spike"


@pytest.mark.parametrize("value", ["loss", "gradient norm"])
def test_a_level_that_lasts_for_half_of_the_window_is_the_usual_one_and_spikes_show_above_it(
    value: str,
) -> None:
    guard = Guard(GuardConfig(spike_window=20))
    state = after_steps(guard, 20)

    def taken(number: int, level: float) -> PretrainResult:
        moved = level * (1 + 0.01 * (number % 7))
        return result(moved) if value == "loss" else result(1.0, norm=moved)

    events = [step(guard, state, taken(number, 3.0)).event for number in range(40)]
    spikes = events.count("spike")
    assert 10 <= spikes <= 12 and events == ["spike"] * spikes + [None] * (40 - spikes)
    assert guard.has_got_used(spikes) and not guard.has_got_used(9)
    assert step(guard, state, taken(0, 9.0)).event == "spike"
    assert step(guard, state, taken(0, 3.0)).event is None


def test_a_loss_that_grows_step_by_step_is_a_spike_from_the_first_that_stands_out() -> None:
    guard = Guard(GuardConfig(spike_window=200, spike="rollback", spike_steps=5))
    state = after_steps(guard, 200)
    for number in range(30):
        verdict = step(guard, state, result(1.03 * 1.05**number))
        if verdict.rollback:
            break
    assert verdict.rollback and 200 < verdict.step <= 215


def test_another_batch_or_image_size_begins_with_no_idea_of_what_is_normal() -> None:
    guard = Guard(GuardConfig(spike_window=20))
    state = after_steps(guard, 20)
    state.enter_phase(0)
    assert len(state.losses) == 20
    state.enter_phase(state.samples_seen)
    assert [step(guard, state, result(3.0)).event for _ in range(20)] == [None] * 20
    assert step(guard, state, result(9.0)).event == "spike"
    state.enter_phase(state.phase_begin)
    assert state.losses and state.spiking == 1


def test_a_rollback_cannot_ask_for_more_spikes_than_the_guard_gets_used_to() -> None:
    assert GuardConfig(spike="rollback", spike_window=10, spike_steps=5).spike_steps == 5
    with pytest.raises(ValueError, match="spike_steps is 6; allowed: up to half of spike_window, 10"):
        GuardConfig(spike="rollback", spike_window=10, spike_steps=6)


def test_nothing_is_judged_before_half_of_the_window_is_known() -> None:
    guard = Guard(GuardConfig(spike_window=20))
    assert step(guard, after_steps(guard, 9), result(50.0)).event is None
    assert step(guard, after_steps(guard, 10), result(50.0)).event == "spike"


def test_what_reaches_the_limit_is_no_spike_yet() -> None:
    state = after_steps(Guard(GuardConfig(spike_window=10)), 10)
    limit = robust_score(9.0, state.losses)
    assert step(Guard(GuardConfig(spike_window=10, spike_score=limit)), state, result(9.0)).event is None


def test_every_verdict_tells_its_score() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", spike_steps=2))
    state = after_steps(guard, 10)
    fine = robust_score(1.04, state.losses)
    assert step(guard, state, result(1.04)).score == fine > 0
    for event in ("spike", "rollback"):
        spike = robust_score(9.0, state.losses)
        verdict = step(guard, state, result(9.0))
        assert (verdict.event, verdict.score) == (event, spike)


def test_spikes_apart_from_each_other_are_no_reason_to_go_back() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", spike_steps=2))
    state = after_steps(guard, 10)
    found = [step(guard, state, result(loss)).rollback for loss in (9.0, 1.0, 9.0, 9.0)]
    assert found == [False, False, False, True]


@pytest.mark.parametrize(
    ("spike", "loss", "event"),
    [
        ("skip", 9.0, "skipped_spike"),
        ("skip", math.nan, "skipped_step"),
        ("skip", 1.0, "skipped_step"),  # its gradient was not finite
        ("record", 9.0, "skipped_step"),  # its gradient was not finite
    ],
)
def test_a_refused_step_is_told_by_what_refused_it(spike: str, loss: float, event: str) -> None:
    guard = Guard(GuardConfig(spike=spike, spike_window=10))
    assert step(guard, after_steps(guard, 10), result(loss, applied=False)).event == event


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
    resumed = State(**asdict(state))
    verdict = step(Guard(config), resumed, result(9.0))
    assert verdict.rollback and verdict.step == 11 and verdict.samples == range(80, 96)


def test_too_many_rollbacks_stop_the_run_with_advice() -> None:
    guard = Guard(GuardConfig(spike_window=10, spike="rollback", spike_steps=1, max_rollbacks=2), rollbacks=1)
    assert step(guard, after_steps(guard, 10), result(9.0)).rollback
    assert step(guard, after_steps(guard, 10), result(9.0)).rollback, "the former came to nothing"
    guard.rolled_back()
    last = step(guard, after_steps(guard, 10), result(9.0))
    assert last.event == "spike" and not last.rollback
    with pytest.raises(UserError, match=r"after 2 rollbacks, as many as guard\.max_rollbacks"):
        last.check()


def test_refused_steps_are_counted_and_too_many_in_a_row_stop_the_run() -> None:
    guard = Guard(GuardConfig(max_skipped=3))
    state = after_steps(guard, 5)
    refused = result(math.nan, norm=math.inf, applied=False)
    assert [step(guard, state, refused).event for _ in range(2)] == ["skipped_step"] * 2
    assert state.applied_steps == 5 and state.step == 7
    last = step(guard, state, refused)
    with pytest.raises(UserError, match=r"guard\.max_skipped"):
        last.check()


def test_a_stop_by_skipped_spikes_names_what_gets_used_to_other_data() -> None:
    guard = Guard(GuardConfig(spike="skip", spike_window=10, max_skipped=1))
    state = after_steps(guard, 10)
    last = step(guard, state, result(9.0, applied=False))
    assert last.event == "skipped_spike"
    with pytest.raises(UserError, match=r"guard\.max_skipped allows; guard\.spike=record gets used to"):
        last.check()


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


@pytest.mark.parametrize(
    ("value", "history", "score"),
    [
        (5.0, [1.0, 2.0, 3.0, 4.0, 100.0], 2 / 1.4826),
        (2.1, [2.0] * 5, 5.0),  # a hundredth of the median is the least deviation
        (-1.9, [-2.0] * 5, 5.0),
        (1e-12, [0.0] * 5, 1.0),
        (9.0, [], 0.0),
    ],
)
def test_a_robust_score_counts_deviations_above_the_median(
    value: float, history: list[float], score: float
) -> None:
    assert robust_score(value, history) == pytest.approx(score)
