"""The plan's operators are those that torch counts; they take a core's time, and a GPU's only if it waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout
from cluster.planning.operators import FORWARD_SHARE, PASS_CALLS, weight
from cluster.planning.speed import predict_step
from cluster.planning.workload import workload
from coatnet.model import rows
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import build_model
from coatnet.model.norm import defer_statistics
from coatnet.model.rates import _probes

_BATCH = 8
QUICKSTART = {"depths": [1, 1, 1, 2, 1], "widths": [16, 32, 48, 96, 128], "image_size": 32}
DEEPER = {"depths": [1, 3, 4, 6, 2], "widths": [32, 48, 96, 192, 256], "image_size": 64}


class Counter(TorchDispatchMode):
    """Counts the operators that the dispatcher sees; one that computes nothing is no whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += weight(func.__name__)
        return func(*args, **(kwargs or {}))


def counted(config: ModelConfig, *, group: int) -> tuple[float, float]:
    model = build_model(config, norm=NormConfig(group_images=group), seed=0).train()
    defer_statistics(model)
    images = torch.zeros(_BATCH, 3, config.image_size, config.image_size)
    with Counter() as forward:
        logits = model(images, sample_keys=torch.arange(_BATCH))
    with Counter() as backward:
        logits.sum().backward()
    return forward.calls, backward.calls


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["rows", "plain"])
@pytest.mark.parametrize(("sizes", "group"), [(QUICKSTART, 8), (QUICKSTART, 2), (DEEPER, 8), (DEEPER, 4)])
def test_a_pass_calls_as_many_operators_as_the_dispatcher_sees(
    kernels: str, sizes: dict[str, Any], group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "plain":
        monkeypatch.setattr(rows, "fits", lambda x: False)
    elif rows.name(device_type="cpu") != "rows":
        pytest.skip("the C extension is not built")
    config = ModelConfig(num_classes=5, stochastic_depth=0.1, **sizes)
    forward, backward = counted(config, group=group)
    works = workload(config, image_size=config.image_size)
    calls = [work.calls[kernels] for work in works]
    planned = PASS_CALLS + sum(once + _BATCH // group * each for once, each in calls)
    assert planned == pytest.approx(forward + backward, rel=0.10)
    assert forward / (forward + backward) == pytest.approx(FORWARD_SHARE, abs=0.2)


@pytest.mark.slow
@pytest.mark.skipif(rows.name(device_type="cpu") != "rows", reason="the C extension is not built")
def test_what_calibration_times_calls_as_many_as_it_says() -> None:
    for shape, call in _probes():
        with Counter() as counter:
            call()
        assert counter.calls == pytest.approx(shape["calls"], rel=0.02), shape["kind"]


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(name="coatnet_3"),
        ModelConfig(name="coatnet_6"),
        ModelConfig(relative_attention=False),
        ModelConfig(mbconv_norm="layer"),
    ],
    ids=lambda config: f"{config.name}-{config.relative_attention}-{config.mbconv_norm}",
)
def test_the_networks_tensors_are_counted(config: ModelConfig) -> None:
    model = build_model(config, device="meta")
    works = workload(config, image_size=224)
    assert sum(work.tensors for work in works) == len(list(model.parameters()))


def seconds(layout: Layout, *, hardware: str, operator_seconds: float, **sizes: Any) -> float:
    machine = replace(load_hardware(hardware), operator_seconds=operator_seconds)
    works = workload(ModelConfig(**sizes), image_size=sizes.get("image_size", 224))
    return predict_step(works, layout=layout, accumulation=1, hardware=machine).seconds


def test_a_core_pays_for_every_operator_and_a_busy_gpu_for_those_of_the_update_alone() -> None:
    tiny, large = Layout(1, 1, 8, precision="fp32", rows=True), Layout(1, 1, 64, precision="fp32")
    free, paid = (seconds(tiny, hardware="cpu2", operator_seconds=each, **QUICKSTART) for each in (0.0, 1e-5))
    assert paid > 2 * free
    free, paid = (seconds(large, hardware="h200", operator_seconds=each) for each in (0.0, 1e-5))
    assert free < paid < 1.2 * free


def test_a_small_batch_on_a_gpu_takes_what_its_launches_take_and_compiled_less() -> None:
    one, two = (
        seconds(Layout(1, 1, batch), hardware="h200", operator_seconds=1e-5, **QUICKSTART)
        for batch in (8, 16)
    )
    assert two < 1.05 * one, "the GPU waits for its host"
    compiled = seconds(Layout(1, 1, 8, compiled=True), hardware="h200", operator_seconds=1e-5, **QUICKSTART)
    assert compiled < 0.8 * one
