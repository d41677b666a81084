"""A step of fine-tuning, against the same one by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.ranks import Ranks
from coatnet.training.optimizer import parameter_groups
from finetune.config import FinetuneConfig, FinetuneOptimizerConfig
from finetune.engine import Engine, LossOf

pytestmark = pytest.mark.slow  # by the import of accelerate
DECAYS: dict[str, Any] = {"weight_decay": 0.1, "layer_decay": 0.5}


def make_engine(tiny: ModelConfig, *, init: str | None = None, ema: float = 0.1) -> Engine:
    optimizer = FinetuneOptimizerConfig(clip=0.1, **DECAYS)
    config = FinetuneConfig(init=init, model=tiny, optimizer=optimizer, ema=ema)
    return Engine(build_model(tiny, seed=1), config, ranks=Ranks())


def losses(*, seed: int = 0, factor: float = 1.0) -> list[LossOf]:
    """Return those of three micro-batches, of two images and of one each."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))

    def loss_of(some: Tensor) -> LossOf:
        return lambda model: factor * (model(some, sample_keys=torch.arange(len(some))) - 1).square().sum()

    return [loss_of(images[begin:end]) for begin, end in ((0, 2), (2, 3), (3, 4))]


def step(engine: Engine, parts: list[LossOf], *, learning_rate: float = 1e-2) -> tuple[Tensor, float, bool]:
    """Take a step as the one rank that there is."""
    total, norm = engine.step(parts, learning_rate=learning_rate)
    applied = math.isfinite(norm)
    engine.state.settle_statistics(applied=applied, from_scratch=engine._config.init is None)
    if applied:
        engine.state.update_ema()
    return total, norm, applied


def parts(engine: Engine) -> dict[str, Tensor]:
    """Return copies of all that a checkpoint would hold."""
    return {f"{each.kind} {each.name}": each.data.clone() for each in engine.state.fragments()}


def test_steps_over_micro_batches_are_adamws_with_each_layers_rate_and_the_clipped_gradient(
    tiny: ModelConfig,
) -> None:
    engine, alone = make_engine(tiny), build_model(tiny, seed=1).train()
    groups = parameter_groups(alone, DECAYS["weight_decay"], layer_decay=DECAYS["layer_decay"])
    adamw = torch.optim.AdamW(groups)
    for seed, rate in enumerate((1e-2, 1e-3)):
        before = {name: one.detach().clone() for name, one in alone.named_parameters()}
        expected = [loss_of(alone) for loss_of in losses(seed=seed)]
        sum(expected[1:], expected[0]).backward()
        norm = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
        for group in adamw.param_groups:
            group["lr"] = rate * group["scale"]
        adamw.step()
        adamw.zero_grad()
        total, found, applied = step(engine, losses(seed=seed), learning_rate=rate)
        assert applied and norm > 0.1 and engine.state.applied_steps == seed + 1
        assert found == pytest.approx(float(norm), rel=1e-4)
        assert float(total) == pytest.approx(sum(one.item() for one in expected), rel=1e-4)
        assert any(not torch.equal(one, before[name]) for name, one in engine.model.named_parameters())
        for name, one in alone.named_parameters():
            torch.testing.assert_close(engine.model.get_parameter(name), one, rtol=1e-3, atol=1e-5, msg=name)


def test_the_average_follows_each_step_and_a_refused_one_leaves_everything_as_it_was(
    tiny: ModelConfig,
) -> None:
    engine, other = make_engine(tiny), make_engine(tiny)
    begun = parts(engine)
    _, norm, applied = step(engine, losses(factor=math.nan))
    assert not applied and math.isnan(norm) and engine.state.applied_steps == 0
    assert all(torch.equal(one, begun[name]) for name, one in parts(engine).items())
    for each in (engine, other):
        assert step(each, losses())[2]
    after = parts(engine)
    assert all(torch.equal(one, after[name]) for name, one in parts(other).items())
    name = "head.logits.weight"
    moved = torch.lerp(begun[f"weight {name}"], after[f"weight {name}"], 0.9)
    torch.testing.assert_close(after[f"ema {name}"], moved)


def test_running_statistics_are_learned_quickly_from_scratch_and_a_checkpoints_are_kept(
    tiny: ModelConfig,
) -> None:
    fresh, kept = make_engine(tiny, ema=0.0), make_engine(tiny, init="of/a/run", ema=0.0)
    for engine in (fresh, kept):
        step(engine, losses(), learning_rate=1e-4)
        assert engine.state.ema is None
    name = "stem.norm.running_mean"
    quickly, slowly = (engine.model.get_buffer(name) for engine in (fresh, kept))
    assert quickly.abs().max() > 10 * slowly.abs().max() > 0
