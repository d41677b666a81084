"""The operators that the plan counts around the network are those that torch's dispatcher sees on ranks."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest

from cluster.planning.operators import COMMIT_CALLS, engine_of

OnRanks = Callable[..., list[Any]]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "world_size", "accumulation"), [(0, 2, 1), (1, 1, 1), (1, 4, 2), (2, 2, 1), (2, 4, 2)]
)
def test_a_step_calls_as_many_operators_as_the_plan_counts(
    on_ranks: OnRanks, stage: int, world_size: int, accumulation: int
) -> None:
    answers = on_ranks("calls_of_a_step", world_size=world_size, stage=stage, accumulation=accumulation)
    tensors, engine = int(answers[0]["tensors"]), engine_of(stage, is_ddp=False)
    planned = engine.until_norm(tensors, accumulation=accumulation, world_size=world_size)
    found = mean(answer["hooks"] + answer.get("norms", 0.0) for answer in answers)
    assert planned == pytest.approx(found, rel=0.10)
    assert engine.update * tensors == pytest.approx(
        mean(answer["update"] for answer in answers), abs=0.3 * tensors
    )
    for answer in answers:  # a few on all layers at once come on top
        assert answer["statistics"] <= COMMIT_CALLS * answer["batch_norms"] + 15


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_lets_the_host_send_off_a_step_without_a_wait_for_the_device(
    on_ranks: OnRanks, stage: int
) -> None:
    assert on_ranks("waits_of_a_step", world_size=1, stage=stage) == [0]
