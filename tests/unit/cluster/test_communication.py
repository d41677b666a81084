"""How long ranks send by the plan; tests/integration/pretrain/test_communication.py counts what they send."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.planning.communication import Communication, predict_communication
from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout


def communication(stage: int, world: int, *, accumulation: int = 4, **how: Any) -> Communication:
    return predict_communication(
        parameters=275_000_000,
        layout=Layout(world, stage, 8, precision="autocast", **how),
        accumulation=accumulation,
        hardware=load_hardware("h100"),
        backward_seconds=0.1,
    )


def test_communication_grows_with_the_stage_and_vanishes_on_one_device() -> None:
    seconds = {
        (stage, world): communication(stage, world).seconds for stage in range(4) for world in (1, 8, 64)
    }
    assert seconds[0, 1] == seconds[3, 1] == 0.0
    assert seconds[0, 64] < seconds[1, 64] < seconds[2, 64] < seconds[3, 64]
    assert seconds[1, 8] < seconds[1, 64] < communication(1, 1024).seconds


def test_the_backward_pass_hides_what_it_may_and_never_the_last_bucket() -> None:
    apart, beside = communication(1, 64), communication(1, 64, overlap=True)
    reducing = beside.collectives["all-reduce of gradients"]
    assert apart.exposed == apart.seconds
    assert beside.exposed == pytest.approx(beside.seconds - 0.8 * reducing * 7 / 8)
    assert communication(1, 64, overlap=True, bucket_elements=20_000_000).exposed < beside.exposed
    # of the last micro-batch alone at stage 1, of every one from stage 2 on
    short = communication(1, 64, overlap=True, accumulation=64)
    assert short.exposed == pytest.approx(short.seconds - 0.8 * 0.1 / 64)
    every = communication(2, 64, overlap=True, accumulation=64)
    assert every.exposed == pytest.approx(every.seconds - 0.8 * 0.1)
    assert communication(0, 64, is_ddp=True).exposed < communication(0, 64).exposed
