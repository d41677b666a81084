"""What DeepSpeed sends in a step is what the plan counts, and may go beside the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cluster.planning.communication import exchanges
from cluster.planning.memory import Layout

OnRanks = Callable[..., list[Any]]
ACCUMULATION = 2
COLLECTIVES = {
    "all-reduce": "all_reduce",
    "reduce-scatter": "reduce_scatter_tensor",
    "gather": "all_gather_into_tensor",
}
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")],
)
def test_a_step_sends_the_bytes_that_the_plan_counts(on_ranks: OnRanks, stage: int, precision: str) -> None:
    told = {"accumulation": ACCUMULATION, "precision": precision, "overlap": False}
    for found in on_ranks("sent_in_a_step", world_size=2, stage=stage, **told):
        expected: Counter[str] = Counter()
        layout = Layout(2, stage, 4, precision=precision)
        for exchange in exchanges(found["parameters"], layout=layout, accumulation=ACCUMULATION):
            expected[COLLECTIVES[exchange.name.split()[0]]] += round(exchange.size)
        sent = {
            name: size for name, size in found["sent"].items() if size > found["parameters"] / 10
        }  # no norms
        assert sent == pytest.approx(expected, rel=0.02), "DeepSpeed pads"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reducing_beside_the_backward_pass_leaves_the_losses_as_they_are(
    on_ranks: OnRanks, stage: int
) -> None:
    told = {"world_size": 2, "stage": stage, "steps": 4, "accumulation": ACCUMULATION}
    apart, beside = (
        on_ranks("engine_losses", overlap_communication=overlap, **told)[0] for overlap in (False, True)
    )
    assert beside == apart


def test_gradients_go_before_the_backward_pass_is_over_where_that_is_asked_for(on_ranks: OnRanks) -> None:
    told = {"world_size": 2, "stage": 1, "accumulation": ACCUMULATION, "precision": "fp32"}
    apart, beside = (on_ranks("sent_in_a_step", overlap=overlap, **told)[0] for overlap in (False, True))
    assert apart["early"][-1] == 0
    assert beside["early"][-1] > 0.7 * beside["sent"]["all_reduce"]
