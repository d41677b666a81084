"""How long ranks send by the plan; tests/integration/pretrain/test_communication.py counts what they send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.planning.communication import Communication, predict_communication
from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout
from cluster.planning.request import plan_of


def communication(stage: int, world: int, *, accumulation: int = 4, **how: Any) -> Communication:
    return predict_communication(
        parameters=275_000_000,
        norms=43,
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


def test_nodes_of_fewer_gpus_send_their_share_over_the_network(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {name: coatnet_4}\ndata: {train: [{path: nowhere}]}\nprecision: autocast\n")

    def gathering(*words: str) -> float:
        plan, _ = plan_of("pretrain", config, [*words, "hardware=h100", "train.micro_batch=64"])
        return plan.communication.collectives["gather of weights"]

    size, hardware = 4 * plan_of("pretrain", config, [])[0].parameters, load_hardware("h100")
    one_node = 7 / 8 * size / hardware.node_bytes_per_second
    assert gathering("nodes=1") == pytest.approx(one_node)
    inside, between = (
        3 / 4 * size / hardware.node_bytes_per_second,
        size / 8 / hardware.network_bytes_per_second,
    )
    assert gathering("nodes=2", "gpus_per_node=4") == pytest.approx(inside + between, rel=0.01)
    assert gathering("nodes=8", "gpus_per_node=1") == pytest.approx(
        7 / 8 * size / hardware.network_bytes_per_second, rel=0.01
    )


def test_batch_norm_over_ranks_waits_for_four_sums_of_every_group_of_every_micro_batch() -> None:
    latency = load_hardware("h100").network_latency_seconds
    alone, node, everyone = (communication(1, 64, groups=2, sync=sync) for sync in ("none", "node", "all"))
    sums = 4 * 43 * 2 * 4
    assert node.exposed - alone.exposed == pytest.approx(sums * latency)
    assert everyone.exposed - alone.exposed == pytest.approx(sums * latency * (1 + 3))
    assert communication(1, 1, sync="all").exposed == 0.0


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
