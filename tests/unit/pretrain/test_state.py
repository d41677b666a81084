"""The state: the digest of samples, jumps, JSON; and what is compared after a resume."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from coatnet.training.continuity import LossContinuity
from pretrain import state as state_module
from pretrain.state import State, digest_of_positions, digest_of_range


def test_the_digest_is_the_same_in_any_order_and_notices_a_lost_or_doubled_sample() -> None:
    positions = np.random.default_rng(0).permutation(1000)
    halves = digest_of_positions(positions[:400]) + digest_of_positions(positions[400:])
    assert halves == digest_of_range(1000)
    assert digest_of_positions(positions[1:]) != digest_of_range(1000)
    assert digest_of_positions(np.append(positions, positions[0])) != digest_of_range(1000)


def test_the_digest_of_steps_is_that_of_their_range_and_the_same_in_every_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_module, "_CHUNK", 300)
    state, positions = State(), np.random.default_rng(0).permutation(1000)
    for step in np.split(positions, 10):
        assert digest_of_positions(step) < 100 << 32, "ranks add theirs up in float64"
        state.advance(samples=len(step), applied=True, bad=0, digest=digest_of_positions(step))
    assert state.samples_seen == 1000
    assert state.trained_digest == digest_of_range(1000) == 2_126_459_329_381
    state.trained_digest = (1 << 64) - 1
    state.advance(samples=1, applied=True, bad=0, digest=3)
    assert state.trained_digest == 2


def test_what_was_normal_is_forgotten_where_a_phase_begins_and_only_there() -> None:
    state = State(losses=[1.0], gradient_norms=[2.0], spiking=3)
    state.enter_phase(0)
    assert (state.losses, state.gradient_norms, state.spiking) == ([1.0], [2.0], 3)
    state.enter_phase(8)
    assert (state.losses, state.gradient_norms, state.spiking, state.phase_begin) == ([], [], 0, 8)


def test_a_state_survives_json() -> None:
    state = State(losses=[0.1, 0.2], figures={"top1": 0.5})
    state.advance(samples=8, applied=False, digest=1 << 60, bad=0)
    assert State(**json.loads(json.dumps(asdict(state)))) == state
    assert (state.step, state.applied_steps, state.skipped_in_a_row) == (1, 0, 1)


def test_a_jump_back_keeps_the_object_that_everyone_holds() -> None:
    state = State(step=9)
    held = state
    state.become(State(step=3))
    assert held.step == 3


def test_loss_continuity_compares_the_first_recorded_position_once() -> None:
    continuity = LossContinuity(precision="fp32", device_type="cpu")
    continuity.remember(
        [{"samples_seen": at, "train/loss": at / 10} for at in (16, 24)] + [{"samples_seen": 24}]
    )
    assert continuity.compare(samples_seen=12, loss=1.0) is None
    compared = continuity.compare(samples_seen=16, loss=1.6)
    assert compared is not None and compared["continuous"]
    assert continuity.compare(samples_seen=24, loss=2.4) is None


def test_losses_of_samples_that_a_rollback_has_left_out_since_are_not_compared() -> None:
    continuity = LossContinuity(precision="fp32", device_type="cpu")
    rows = [{"samples_seen": 16, "train/loss": 1.6}, {"samples_seen": 24, "train/loss": 99.0}]
    continuity.remember(rows, until=16)
    assert continuity.compare(samples_seen=24, loss=2.4) is None
    assert continuity.compare(samples_seen=16, loss=1.6) is not None


@pytest.mark.parametrize(
    ("precision", "device_type", "loss", "continuous"),
    [
        ("fp32", "cpu", 1.60015, True),
        ("fp32", "cpu", 1.60017, False),
        ("fp32", "cpu", 1.5, False),
        ("fp32", "cpu", math.nan, False),
        ("fp32", "cpu", math.inf, False),
        ("bf16", "cpu", 1.60017, False),
        ("fp32", "cuda", 1.60017, False),
        ("bf16", "cuda", 1.606, True),
        ("autocast", "cuda", 1.606, True),
        ("bf16", "cuda", 1.607, False),
    ],
)
def test_loss_continuity_allows_what_another_number_of_ranks_may_change_and_no_more(
    precision: str, device_type: str, loss: float, *, continuous: bool
) -> None:
    continuity = LossContinuity(precision=precision, device_type=device_type)
    continuity.remember([{"samples_seen": 16, "train/loss": 1.6}])
    compared = continuity.compare(samples_seen=16, loss=loss)
    assert compared is not None and compared["continuous"] is continuous


def test_a_loss_that_was_recorded_as_none_is_gone_on_with_by_no_other() -> None:
    continuity = LossContinuity(precision="fp32", device_type="cpu")
    continuity.remember([{"samples_seen": 16, "train/loss": "nan"}])  # JSON has no such number
    compared = continuity.compare(samples_seen=16, loss=1.6)
    assert compared is not None and not compared["continuous"]
