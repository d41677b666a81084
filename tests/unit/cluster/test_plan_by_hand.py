"""A plan's memory and time of a network of three operations, against sums made by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.planning.communication import Communication, exchanges, predict_communication
from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout, Memory, predict_memory
from cluster.planning.operators import (
    COMMIT_CALLS,
    FORWARD_SHARE,
    LOOP_CALLS,
    MODULES_SHARE,
    PASS_CALLS,
    collectives,
    engine_of,
)
from cluster.planning.speed import Step, predict_step
from cluster.planning.whole_run import decode_seconds, predict_run
from cluster.planning.workload import Work, workload
from coatnet.model.config import ModelConfig

GPU = Hardware(
    name="round",
    memory_bytes=1e5,
    matmul_flops={"bf16": 100.0, "fp32": 50.0},
    copy_bytes_per_second=1000.0,
    matmul_share=0.5,
    elementwise_share=0.5,
    depthwise_share=0.25,
    attention_share=0.2,
    kernel_seconds=0.5,
    operator_seconds=1e-9,
    process_bytes=1000.0,
    reserve_share=0.125,
)
CORES = replace(GPU, shares_memory=True)
STEM = Work("S0", "S0", "matmul", 100, 10, 1000.0, 1.0, {"half": 9, "fp32": 9, "rows": 9}, 1.0)
MATMUL = Work("S1", "S1.0", "matmul", 800, 1000, 50.0, 20.0, {"half": 60, "fp32": 80, "rows": 70}, 10.0)
DEPTHWISE = Work("S1", "S1.1", "depthwise", 80, 100, 40.0, 8.0, {"half": 30, "fp32": 40, "rows": 35}, 4.0)
GELU = Work("S2", "S2.0", "elementwise", 0, 0, 100.0, 6.0, {"half": 12, "fp32": 24, "rows": 24}, 6.0)
WORKS = [MATMUL, replace(DEPTHWISE, fuses=True), GELU]  # 880 parameters
FROZEN = [replace(STEM, learns=False, tracked=False), *WORKS]


def memory(
    stage: int, precision: str, *, works: Any = WORKS, hardware: Hardware = GPU, world: int = 4, **how: Any
) -> Memory:
    layout = Layout(world, stage, micro_batch=2, precision=precision, **how)
    found = predict_memory(works, layout=layout, hardware=hardware, image_size=4)
    assert found.input == 2 * 4 * 4 * 3 * (1 + 4)
    assert found.total == pytest.approx(sum(found.components().values()))
    return found


@pytest.mark.parametrize(
    ("stage", "precision", "how", "weights", "gradients", "optimizer", "casts", "buckets"),
    [
        (0, "bf16", {}, 1760, 3520, 3 * 3520, 0, 1760),
        (1, "bf16", {}, 1760, 3520, 2640, 0, 2 * 1760),
        (2, "bf16", {}, 1760, 440 + 880, 2640, 0, 2 * 1760),
        (3, "bf16", {}, 440, 440 + 880, 2640, 0, (4 * 110 + 2 * 800) * 2),
        (0, "autocast", {}, 3520, 3520, 2 * 3520, 1760, 3520),
        (1, "autocast", {"overlap": True}, 3520, 3520, 2640, 1760, 3 * 110 * 4),
        (3, "autocast", {}, 880, 880, 2640, 0, (4 * 110 + 2 * 800) * 4),
        (2, "fp32", {"bucket_elements": 100}, 3520, 880, 2640, 0, 2 * 100 * 4),
        (0, "fp32", {"is_ddp": True}, 3520, 3520, 2 * 3520, 0, 0),
        (1, "fp32", {"world": 1}, 3520, 3520, 3 * 3520, 0, 0),
    ],
)
def test_what_a_rank_holds_of_the_weights(
    stage: int,
    precision: str,
    how: dict[str, Any],
    weights: float,
    gradients: float,
    optimizer: float,
    casts: float,
    buckets: float,
) -> None:
    found = memory(stage, precision, ema=True, **how)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)
    assert (found.casts, found.buckets) == (casts, buckets)
    assert found.ema == (880 if stage and how.get("world") != 1 else 3520)
    assert (found.process, found.snapshot) == (1000, 0)
    model = weights + gradients + optimizer + casts + buckets + found.ema + found.input
    assert found.reserve == pytest.approx((model + sum(found.activations.values())) / 8)


@pytest.mark.parametrize(
    ("precision", "how", "activations"),
    [
        ("bf16", {}, {"S1": 180, "S2": 24}),
        ("fp32", {}, {"S1": 240, "S2": 48}),
        ("fp32", {"rows": True}, {"S1": 210, "S2": 48}),
        ("bf16", {"compiled": True}, {"S1": 2 * 2 * 28, "S2": 24}),
        ("fp32", {"compiled": True, "fused": True}, {"S1": 2 * 4 * 20, "S2": 48}),
        ("bf16", {"fused": True}, {"S1": 180, "S2": 24}),
        # what goes into a block is kept, and while a backward pass runs the largest block in full
        ("bf16", {"checkpointing": ("S1",)}, {"S1": 2 * (2 * 14 + 60), "S2": 24}),
        ("bf16", {"checkpointing": ("S1", "S2")}, {"S1": 2 * (2 * 14 + 60), "S2": 2 * 2 * 6}),
        ("bf16", {"works": FROZEN}, {"S0": 2 * 2 * 1000 - 204, "S1": 180, "S2": 24}),
    ],
)
def test_what_a_rank_holds_of_the_activations(
    precision: str, how: dict[str, Any], activations: dict[str, float]
) -> None:
    assert memory(1, precision, **how).activations == activations


def test_checkpointing_keeps_of_a_block_what_goes_into_it() -> None:
    kept: dict[str, float] = {}
    for work in workload(ModelConfig(name="coatnet_0"), image_size=224):
        kept[work.block] = kept.get(work.block, 0.0) + work.block_input
    sides = {
        "S1": (64, 112, 96, 56),
        "S2": (96, 56, 192, 28),
        "S3": (192, 28, 384, 14),
        "S4": (384, 14, 768, 7),
    }
    for stage, (width, side, inner_width, inner_side) in sides.items():
        assert kept[f"{stage}.0"] == width * side**2 and kept[f"{stage}.1"] == inner_width * inner_side**2


def test_parts_that_do_not_learn_are_weights_alone() -> None:
    found, whole = memory(2, "bf16", works=FROZEN), memory(2, "bf16")
    assert found.weights == 2 * 980
    assert (found.gradients, found.optimizer) == (whole.gradients, whole.optimizer)


def test_a_process_on_cores_has_holes_in_its_heap_and_copies_what_it_saves() -> None:
    one, three, ddp = (memory(stage, "fp32", hardware=CORES, is_ddp=not stage) for stage in (1, 3, 0))
    on_gpu = memory(1, "fp32")
    assert one.reserve == pytest.approx(on_gpu.reserve + 0.45 * 288 + 4 * 3520)
    assert three.reserve == pytest.approx(memory(3, "fp32").reserve + 0.45 * 288 + 2.2 * 3520)
    assert ddp.reserve == pytest.approx(memory(0, "fp32", is_ddp=True).reserve + 0.45 * 288)
    assert (one.snapshot, three.snapshot, ddp.snapshot) == (0, 0, 2640), "where no bucket is gone by then"
    assert (one.process, ddp.process) == (1000, 1000 - 49e6)
    drawing = memory(0, "fp32", works=FROZEN, hardware=CORES, is_ddp=True, draws=True, ema=True)
    assert (drawing.process, drawing.snapshot) == (1000 - 2e6, 880 * 4 + 400)
    large = [replace(MATMUL, parameters=20_000_000)]  # 80 MB: a fourth of it is small enough for the heap
    for world, copies in ((4, 1), (1, 0)):
        cores, gpu = (memory(1, "fp32", works=large, hardware=h, world=world) for h in (CORES, GPU))
        assert cores.reserve - gpu.reserve == pytest.approx(0.45 * 160 + copies * 80e6)


def step(stage: int, precision: str = "bf16", *, works: Any = WORKS, **how: Any) -> Step:
    layout = Layout(4, stage, micro_batch=2, precision=precision, **how)
    return predict_step(works, layout=layout, accumulation=3, hardware=GPU)


def test_an_operation_takes_the_longer_of_its_arithmetic_and_its_traffic_and_its_kernels_start() -> None:
    found = step(1)
    matmul = 1000 * 2 * 2 / 50 + 0.5
    depthwise = 100 * 2 * 2 / 50 + 0.5
    gelu = 1.35 * (100 * 2) * 2 / 500 + 0.5
    assert found.stages == pytest.approx({"S1": 3 * 3 * (matmul + depthwise), "S2": 3 * 3 * gelu})
    assert found.backward == pytest.approx(2 * 3 * (matmul + depthwise + gelu))
    assert found.forward == pytest.approx(matmul + depthwise + gelu)
    assert found.flops == 3 * 2 * 1100 * 2 * 3 and found.recomputed == 0
    assert found.optimizer == pytest.approx(880 / 4 * 28 / 1000)
    assert step(0).optimizer == pytest.approx(880 * 28 / 1000)
    assert found.seconds == pytest.approx(sum(found.stages.values()) + found.optimizer + found.operators)
    assert step(1, checkpointing=("S1",)).recomputed == pytest.approx(3 * (matmul + depthwise))
    assert step(1, compiled=True).stages["S2"] == pytest.approx(3 * 3 * ((100 * 2) * 2 / 500 + 0.5))
    slow = step(1, "fp32", works=[replace(DEPTHWISE, macs=1), replace(GELU, kind="attention")])
    assert slow.stages["S1"] == pytest.approx(3 * 3 * ((40 * 2 + 80) * 4 / 250 + 0.5))
    assert slow.stages["S2"] == pytest.approx(3 * 3 * (100 * 2 * 4 / 200 + 0.5))


def test_what_does_not_learn_has_half_a_backward_pass_or_none() -> None:
    found = step(1, works=[*FROZEN, replace(STEM, stage="head", learns=False)])
    stem = (1000 * 2 + 100) * 2 / 1000 + 0.5
    assert (found.stages["S0"], found.stages["head"]) == pytest.approx((3 * stem, 3 * 2 * stem))
    assert found.flops == 3 * 2 * 2 * (1100 * 3 + 10 * 1 + 10 * 2)
    assert found.optimizer == step(1).optimizer


def test_cores_call_every_operator_in_turn_and_a_gpu_waits_where_it_is_the_quicker() -> None:
    called = [
        replace(MATMUL, calls={"plain": (5, 0), "compiled": (2, 0)}, tensors=2),
        replace(DEPTHWISE, calls={"plain": (3, 2), "compiled": (1, 1)}, tensors=1, grouped=True),
        replace(GELU, calls={"plain": (1, 0), "compiled": (1, 0)}),
    ]
    passed = replace(STEM, learns=False, tracked=False, calls={"plain": (8, 0)}, tensors=4)
    engine = engine_of(1, is_ddp=False)
    around = engine.until_norm(3, accumulation=3, world_size=4) + engine.interpreter(3, accumulation=3)
    update = LOOP_CALLS + engine.update * 3 + COMMIT_CALLS

    def found(works: list[Work], hardware: Hardware, **how: Any) -> Step:
        layout = Layout(4, 1, micro_batch=2, groups=3, **how)
        return predict_step(works, layout=layout, accumulation=3, hardware=hardware)

    cores = replace(CORES, operator_seconds=2.0)
    plain, modules = PASS_CALLS + 5 + (3 + 3 * 2) + 1, 1 + MODULES_SHARE
    one = found(called, cores)
    assert one.operators == pytest.approx(2 * (3 * modules * plain + around + update))
    assert one.forward == pytest.approx(step(1).forward + 2 * FORWARD_SHARE * modules * plain)
    again = found(called, cores, checkpointing=("S1",)).operators - one.operators
    assert again == pytest.approx(2 * 3 * modules * FORWARD_SHARE * 14)
    more = found([passed, *called], cores).operators - one.operators
    assert more == pytest.approx(2 * 3 * modules * FORWARD_SHARE * 8)
    compiled = found(called, cores, compiled=True).operators
    assert compiled == pytest.approx(2 * (3 * (PASS_CALLS + 2 + (1 + 3) + 1) + around + update))
    gpu = found(called, replace(GPU, operator_seconds=40.0))
    working = sum(gpu.stages.values())
    calls = 40 * (3 * modules * plain + around)
    assert calls > working and gpu.operators == pytest.approx(calls - working + 40 * update)
    assert gpu.backward == pytest.approx(one.backward * calls / working)
    assert gpu.forward == pytest.approx(40 * FORWARD_SHARE * modules * plain)


@pytest.mark.parametrize(
    ("stage", "how", "sent"),
    [
        (0, {}, [("all-reduce of gradients", 4000, 1, 2, 0)]),
        (0, {"is_ddp": True}, [("all-reduce of gradients", 4000, 1, 2, 0.25)]),
        (1, {}, [("all-reduce of gradients", 2000, 1, 2, 0), ("gather of weights", 2000, 1, 1, 0)]),
        (2, {}, [("all-reduce of gradients", 8000, 4, 2, 0), ("gather of weights", 2000, 1, 1, 0)]),
        (
            *(3, {"overlap": True}),
            [("reduce-scatter of gradients", 8000, 4, 1, 1), ("gather of weights", 16000, 8, 1, 1)],
        ),
    ],
)
def test_what_a_step_of_four_micro_batches_sends_of_a_thousand_weights(
    stage: int, how: dict[str, Any], sent: list[tuple[Any, ...]]
) -> None:
    layout = Layout(8, stage, 1, **how)
    assert [tuple(vars(one).values()) for one in exchanges(1000, layout=layout, accumulation=4)] == sent
    assert exchanges(1000, layout=replace(layout, world_size=1), accumulation=4) == []


def test_what_is_sent_passes_the_links_of_a_node_and_then_those_between_nodes() -> None:
    """Two nodes of four: a ring takes 3/4 · 2000 / 100 + 1/2 · 500 / 10 s, and a trip for each bucket."""
    links = {"node_bytes_per_second": 100.0, "network_bytes_per_second": 10.0}
    hardware = replace(GPU, gpus_per_node=4, network_latency_seconds=0.25, **links)

    def found(hardware: Hardware = hardware, **how: Any) -> Communication:
        return predict_communication(
            parameters=1000,
            norms=3,
            layout=Layout(8, 1, 1, **how),
            accumulation=4,
            hardware=hardware,
            backward_seconds=100.0,
        )

    waits = collectives(1, is_ddp=False) * 0.5
    for sync, sums in (("none", 0.0), ("node", 48 * 0.25), ("all", 48 * 0.5)):
        one = found(bucket_elements=500, sync=sync)
        assert one.collectives == {
            "all-reduce of gradients": pytest.approx(2 * (15 + 25 + 2 * 0.25)),
            "gather of weights": pytest.approx(15 + 25 + 2 * 0.25),
            "sums of batch norm": pytest.approx(sums),
            "small messages": pytest.approx(waits),
        }
        assert one.exposed == pytest.approx(one.seconds)
    apart = found(replace(hardware, gpus_per_node=1), sync="node")
    assert apart.collectives["sums of batch norm"] == 0, "a node of one rank waits for nobody"
    beside = found(overlap=True)  # eight buckets; a fourth of the backward passes hides four fifths
    assert beside.seconds == pytest.approx(3 * (15 + 25 + 8 * 0.25) + waits)
    assert beside.exposed == pytest.approx(beside.seconds - 0.8 * 25)


def test_a_run_is_its_start_its_steps_its_evaluations_and_its_last_save() -> None:
    run: Any = SimpleNamespace(
        total_samples=1000, evaluate_every=300, evaluation_samples=50, stretches=[(8, 100), (16, 5)]
    )
    given = {"world_size": 4, "step_seconds": {8: 2.0, 16: 3.0}, "forward_seconds": 0.5, "save_seconds": 7.0}

    def parts() -> tuple[float, ...]:
        found = predict_run(run, hardware=GPU, **given)
        assert found is not None and found.seconds == sum(vars(found).values())
        return found.start, found.steps, found.evaluation, found.saves

    assert parts() == (60, 215, 4 * 13 * 0.5, 7), "an evaluation at the end, too; 13 images of 50 on a rank"
    run.evaluate_every = None
    assert parts() == (60, 215, 13 * 0.5, 7)
    run.evaluation_samples = 0
    assert parts() == (60, 215, 0, 7)
    run.total_samples = None
    assert predict_run(run, hardware=GPU, **given) is None


@pytest.mark.parametrize(("size", "share"), [(None, 1.0), (220e3, 2.0), (11e3, 0.1), (500.0, 0.05)])
def test_an_image_is_decoded_in_the_time_that_its_bytes_take(size: float | None, share: float) -> None:
    recipe: Any = SimpleNamespace(sample_bytes=size)
    assert decode_seconds(recipe, hardware=GPU) == pytest.approx(share / 976)
