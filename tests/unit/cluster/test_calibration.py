"""A profile measured here: the roofline gives back what was measured; mistakes are told before measuring."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cluster.planning.calibration import calibrate, calibrated, mean_rates
from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout
from cluster.planning.request import calibrated_words, plan_of, plan_run
from cluster.planning.speed import predict_step
from cluster.planning.workload import Work
from cluster.recipe import read_recipe
from coatnet.config import UserError, to_dict
from coatnet.model.rates import Rate, measure_rates

BASE = load_hardware("cpu2")


def rate(kind: str, elements: int, macs: int, seconds: float, *, calls: float = 0.0) -> dict:
    return dataclasses.asdict(Rate(kind, elements, macs, seconds, calls))


RATES = [
    rate("product", 1_000_000, 80_000_000, 0.010),
    rate("product", 500_000, 80_000_000, 0.006),
    rate("norm", 1_000_000, 0, 0.012),
    rate("depthwise", 1_000_000, 9_000_000, 0.009),
    rate("attention", 100_000, 8_000_000, 0.004),
    rate("launch", 16, 0, 0.001, calls=100.0),
    rate("copy", 8_000_000, 0, 0.004),
]


def work(kind: str, *, moved: float, macs: int = 0) -> Work:
    return Work("S1", "S1.0", kind, 0, macs, moved, 0.0, {}, 0.0)


@pytest.mark.parametrize(
    ("works", "seconds"),
    [
        ([work("elementwise", moved=3e6), work("elementwise", moved=2e6)], 0.012),
        ([work("depthwise", moved=2e6, macs=9_000_000)], 0.009),
        ([work("attention", moved=4e5, macs=8_000_000)], 0.004),
        ([work("matmul", moved=0.0, macs=80_000_000)] * 2, 0.016),
    ],
)
def test_the_roofline_gives_an_operation_that_was_measured_its_time(
    works: list[Work], seconds: float
) -> None:
    hardware = dataclasses.replace(calibrated(BASE, RATES), operator_seconds=0.0)
    layout = Layout(1, 0, 1, precision="fp32")
    step = predict_step(works, layout=layout, accumulation=1, hardware=hardware)
    assert step.seconds == pytest.approx(seconds, rel=0.01)


def test_what_calling_an_operator_takes_is_no_part_of_its_rate() -> None:
    called = [{**one, "calls": 200.0} if one["kind"] == "norm" else one for one in RATES]
    bare, net = calibrated(BASE, RATES), calibrated(BASE, called)
    assert net.operator_seconds == bare.operator_seconds == pytest.approx(1e-5)
    assert net.elementwise_share == pytest.approx(bare.elementwise_share * 12 / (12 - 2), rel=0.01)


def test_a_slower_hour_makes_a_longer_step() -> None:
    slow = [{**one, "seconds": 2 * one["seconds"]} for one in RATES]
    quick, tired = calibrated(BASE, RATES), calibrated(BASE, slow)
    assert tired.peak_flops("fp32") == pytest.approx(quick.peak_flops("fp32") / 2, rel=0.01)
    assert tired.operator_seconds == pytest.approx(2 * quick.operator_seconds, rel=0.01)
    assert tired.elementwise_share == pytest.approx(quick.elementwise_share, rel=0.01)
    assert (tired.process_bytes, tired.network_bytes_per_second) == (
        BASE.process_bytes, BASE.network_bytes_per_second,
    )  # fmt: skip


def test_of_several_ranks_the_mean_counts() -> None:
    slow = [{**one, "seconds": 3 * one["seconds"]} for one in RATES]
    assert mean_rates([RATES, slow])[0]["seconds"] == pytest.approx(2 * RATES[0]["seconds"])


def test_a_run_is_planned_by_what_its_ranks_attain(config: Path) -> None:
    resolved = to_dict(read_recipe("pretrain", config, overrides=["train.micro_batch=1"]))
    slow = [{**one, "seconds": 2 * one["seconds"]} for one in RATES]
    found = [
        plan_run(resolved, world_size=2, ranks_per_node=2, device="cpu", rates=[rates] * 2)
        for rates in (RATES, slow)
    ]
    quick, tired = (one for one in found if one is not None)
    assert quick["hardware"] == "cpu2, measured"
    assert tired["step"]["backward"] == pytest.approx(2 * quick["step"]["backward"], rel=0.02)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("model: {name: coatnet_0}\ndata: {train: [{path: nowhere}]}\n")
    return path


@pytest.mark.slow
def test_a_machine_is_measured_into_a_file_that_a_plan_takes(config: Path, tmp_path: Path) -> None:
    here = tmp_path / "here.yaml"
    words = calibrated_words(
        here, ["nodes=1", "gpus_per_node=1", "train.micro_batch=8", "train.global_batch=8"]
    )
    plan, _ = plan_of("pretrain", config, words)
    hardware = load_hardware(str(here))
    assert (hardware.name, hardware.gpus_per_node, plan.hardware) == ("here", 1, "here")
    assert 1e9 < hardware.peak_flops("fp32") < 1e13 and 0 < hardware.elementwise_share < 5
    assert 0 < hardware.matmul_share <= 1 and plan.step_seconds > 0


def test_rates_tell_the_work_of_every_kind() -> None:
    found = measure_rates(seconds=0.0)
    assert {one.kind for one in found} == {"product", "norm", "depthwise", "attention", "launch", "copy"}
    assert all(one.seconds > 0 and one.elements > 0 for one in found)


@pytest.mark.parametrize(
    ("path", "words", "message"),
    [
        ("here.yaml", ["hardware=h100"], "exclude each other"),
        ("here.yaml", ["gpus_per_node=0"], "gpus_per_node is '0'"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(path: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        calibrated_words(Path(path), words)


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"here\.json: ends in \.json; allowed: \.yaml"):
        calibrate(tmp_path / "here.json", ranks=1)
    with pytest.raises(UserError, match="there is no folder"):
        calibrate(tmp_path / "no" / "here.yaml", ranks=1)
