"""The plan's activations are what torch itself says that it keeps: counted on shapes alone, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cluster.planning.memory import Layout, saved_bytes
from cluster.planning.workload import workload
from coatnet.model import rows
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import build_model

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from saved_bytes import count_compiled, count_eager, count_saved, planned_bytes

STAGES = ("S0", "S1", "S2", "S3", "S4")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [("coatnet_0", "autocast"), ("coatnet_2", "autocast"), ("coatnet_4", "autocast"), ("coatnet_2", "fp32")],
)
def test_uncompiled_activations_on_a_gpu_are_what_autograd_saves(name: str, precision: str) -> None:
    options = {"batch": 64, "image_size": 224, "precision": precision}
    # A stage's blocks are alike but for the first; benchmarks/saved_bytes.py counts them all.
    config = ModelConfig(name=name, depths=[1, 2, 2, 2, 2])
    counted, planned = count_eager(config, **options), planned_bytes(config, **options)
    for stage in STAGES:
        assert planned[stage] == pytest.approx(counted[stage], rel=0.02), stage
    assert sum(planned.values()) == pytest.approx(sum(counted.values()), rel=0.01)


@pytest.mark.skipif(rows.name(device_type="cpu") != "rows", reason="the C extension is not built")
@pytest.mark.parametrize(
    ("depths", "widths"),
    [
        ([1, 1, 2, 3, 1], [32, 48, 96, 192, 256]),
        ([1, 2, 3, 5, 1], [48, 64, 128, 256, 512]),
        ([2, 2, 3, 5, 2], [64, 96, 192, 384, 768]),
    ],
)
def test_activations_on_cores_are_what_autograd_saves(depths: list[int], widths: list[int]) -> None:
    config = ModelConfig(depths=depths, widths=widths, num_classes=2)
    model = build_model(config, norm=NormConfig(group_images=2), seed=0).train()
    counted = count_saved(model, torch.zeros(4, 3, 96, 96), precision="fp32")
    layout = Layout(1, 0, 4, precision="fp32", rows=True)
    planned = saved_bytes(workload(config, image_size=96), layout=layout)
    for stage in STAGES:
        assert planned[stage] == pytest.approx(counted[stage], rel=0.01), stage


@pytest.mark.skipif(rows.name(device_type="cpu") != "rows", reason="the C extension is not built")
@pytest.mark.parametrize("frozen", [("S0", "S1"), ("S0", "S1", "S2", "S3")])
def test_what_lies_before_everything_that_learns_keeps_nothing(frozen: tuple[str, ...]) -> None:
    config = ModelConfig(depths=[1, 1, 2, 3, 1], widths=[32, 48, 96, 192, 256], num_classes=2)
    model = build_model(config, norm=NormConfig(group_images=2), seed=0)
    model.freeze(frozen)
    counted = count_saved(model.train(), torch.zeros(4, 3, 96, 96), precision="fp32")
    works = workload(config, image_size=96, frozen=frozen)
    assert sum(work.parameters for work in works if work.learns) == sum(
        one.numel() for one in model.parameters() if one.requires_grad
    )
    planned = saved_bytes(works, layout=Layout(1, 0, 4, precision="fp32", rows=True))
    for stage in STAGES:
        assert planned[stage] == pytest.approx(counted.get(stage, 0), rel=0.01), stage


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_compiled_activations_are_what_inductors_partitioner_keeps(fused: bool) -> None:
    sizes = {"widths": [96] * 5, "num_classes": 2}
    for block, (counted, planned) in count_compiled("coatnet_4", fused=fused, **sizes).items():
        assert planned == pytest.approx(counted, rel=0.01), block


@pytest.mark.parametrize(
    ("changes", "fused"),
    [
        ({}, [True] * 4),
        ({"stride_place": "depthwise"}, [False, True, False, True]),
        ({"mbconv_norm": "layer"}, [False] * 4),
        ({"gelu": "exact"}, [False] * 4),
    ],
)
def test_the_plan_fuses_the_blocks_that_the_network_fuses(changes: dict[str, str], fused: list[bool]) -> None:
    config = ModelConfig(depths=[1, 2, 2, 1, 1], widths=[8, 8, 16, 32, 32], num_classes=2, **changes)
    model = build_model(config, device="meta")
    model.fuse_mbconv()
    assert fused == [block.fused for stage, block in model.blocks() if stage in ("S1", "S2")]
    works = workload(config, image_size=224)
    assert fused == [work.fuses for work in works if work.kind == "depthwise"]
