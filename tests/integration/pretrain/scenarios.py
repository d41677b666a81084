"""What forked ranks run: each function here is called on every rank of a fresh gloo group."""

from __future__ import annotations

import torch

from coatnet.model import ModelConfig, NormConfig, build_model, commit_statistics, defer_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.losses import make_loss
from pretrain.engine.engine import Engine
from pretrain.sections import OptimizerConfig, ZeroConfig

TINY = ModelConfig(num_classes=5, image_size=32, depths=[1, 1, 1, 1, 1], widths=[8, 16, 16, 32, 32])
GROUP = 2


def tiny_engine(
    ranks: Ranks, *, stage: int, clip: float = 1.0, ema: bool = True, precision: str = "fp32"
) -> Engine:
    model = build_model(TINY, norm=NormConfig(group_images=GROUP), seed=1)
    defer_statistics(model)
    return Engine(
        model,
        ranks=ranks,
        zero=ZeroConfig(stage=stage, bucket_elements=50_000, persist_elements=100),
        optimizer=OptimizerConfig(learning_rate=1e-2, clip=clip),
        precision=precision,
        ema_decay=0.99 if ema else None,
    )


def samples(step: int, *, global_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(global_batch, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 5, (global_batch,), generator=generator)


def train(
    engine: Engine, *, first: int, steps: int, accumulation: int, global_batch: int = 24
) -> list[float]:
    """Train on samples that depend on the step alone; returns the global loss of each step."""
    ranks, loss_of, losses = engine.ranks, make_loss("softmax", 0.1), []
    for step in range(first, first + steps):
        images, labels = samples(step, global_batch=global_batch)
        share = global_batch // ranks.world_size
        own = slice(ranks.rank * share, (ranks.rank + 1) * share)
        parts = list(zip(images[own].chunk(accumulation), labels[own].chunk(accumulation), strict=True))
        update = engine.step(parts, loss_of=lambda model, part: loss_of(model(part[0]), part[1]), lr=1e-2)
        commit_statistics(engine.module, ranks.all_reduce_sum)
        engine.update_ema()
        total = update.loss.clone()
        ranks.all_reduce_sum(total)
        losses.append(float(total) / ranks.world_size)
    return losses


def losses(stage: int, steps: int, accumulation: int, clip: float = 1.0) -> list[float]:
    engine = tiny_engine(Ranks.start(), stage=stage, clip=clip)
    return train(engine, first=0, steps=steps, accumulation=accumulation)
