"""What MFU is a share of, by the card and the precision, and of what: a plan divides by the same peak."""

from __future__ import annotations

import pytest
import torch

from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout
from cluster.planning.speed import predict_step
from cluster.planning.workload import workload
from coatnet.model.config import ModelConfig
from coatnet.model.cost import model_cost
from coatnet.training.utilisation import flops_per_image, peak_flops


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, *, products: str = "highest") -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: products)


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 417e12, 60e12),
        ("NVIDIA H200", 989e12, 494e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 417e12, 60e12),
        ("NVIDIA GH200 480GB", 989e12, 494e12, 67e12),
        ("NVIDIA L40S", 362e12, 183e12, 91.6e12),
        ("NVIDIA B200", 2250e12, 1125e12, 75e12),
        ("NVIDIA GB200", 2500e12, 1250e12, 80e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None, None),
        ("NVIDIA GeForce RTX 4090", None, None, None),
    ],
)
def test_every_card_has_the_peak_of_what_it_computes_in(
    name: str,
    bf16: float | None,
    tf32: float | None,
    fp32: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, name)
    assert [peak_flops(precision) for precision in ("autocast", "bf16", "fp32")] == [bf16, bf16, fp32]
    pretend(monkeypatch, name, products="high")
    assert (peak_flops("bf16"), peak_flops("fp32")) == (bf16, tf32)


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_plans_mfu_is_a_share_of_the_same_peak_as_the_runs(
    name: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, name)
    hardware = load_hardware(profile)
    for precision in ("autocast", "bf16", "fp32"):
        assert hardware.peak_flops(precision) == peak_flops(precision)


def test_a_cpus_peak_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_flops("fp32") is None


@pytest.mark.parametrize("frozen", [(), ("S0", "S1"), ("S2",), ("S0", "S1", "S2", "S3", "S4", "dense")])
def test_a_frozen_part_takes_no_pass_that_nothing_learns_from_as_the_plan_counts_it(
    frozen: tuple[str, ...],
) -> None:
    model = ModelConfig(name="coatnet_0", num_classes=1000, image_size=224)
    layout = Layout(world_size=1, zero_stage=0, micro_batch=1)
    works, hardware = workload(model, image_size=224, frozen=frozen), load_hardware("h100")
    planned = predict_step(works, layout=layout, accumulation=1, hardware=hardware)
    assert flops_per_image(model, 224, frozen=frozen) == planned.flops


def test_what_is_frozen_before_the_first_part_that_learns_is_passed_once_and_the_rest_thrice() -> None:
    model = ModelConfig(name="coatnet_0", num_classes=1000, image_size=224)
    cost = model_cost(model, 224)
    macs = {stage.name: stage.macs for stage in cost.stages}
    whole = flops_per_image(model, 224)
    assert whole == 2 * 3 * cost.macs
    late = flops_per_image(model, 224, frozen=("S0", "S1"))
    assert whole - late == 2 * 2 * (macs["S0"] + macs["S1"])
    between = flops_per_image(model, 224, frozen=("S2",))
    assert whole - between == 2 * macs["S2"], "the way back to the stem leads through it"
