"""What fine-tuning begins with: a checkpoint's weights under a new head, frozen parts, the calendar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coatnet.checkpoint.classes import match_classes
from coatnet.checkpoint.inspection import CONFIG
from coatnet.checkpoint.weights import LOGITS, Weights, load_tensors, load_weights
from coatnet.config import Duration, UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import CoAtNet, build_model
from coatnet.training.calendar import Calendar, Change
from finetune.config import FinetuneConfig, HeadConfig
from finetune.handover.importing import foreign_weights

_HEAD_STD = 0.02
_NOT_ARCHITECTURE = {"num_classes": 1, "image_size": 224, "stochastic_depth": 0.0}


def starting_model(
    config: FinetuneConfig, *, classes: Sequence[str]
) -> tuple[CoAtNet, ModelConfig, dict[str, Any]]:
    """Return the model on the CPU, its config, and where it comes from.

    From scratch the relative-bias tables are laid out for `augment.image_size`; from a checkpoint they keep
    their grid and are resized in the model, so that the parameters stay those of pretraining.

    Raises:
        UserError: the checkpoint is of another architecture than `model`, or its tensors do not fit.
    """
    if config.init is None:
        assert config.model is not None  # the schema's own check
        fresh = replace(
            config.model,
            num_classes=len(classes),
            image_size=config.augment.image_size,
            stochastic_depth=_depth(config, config.model),
        )
        return build_model(fresh, norm=config.norm, seed=config.seed), fresh, {"init": None}
    weights = _initial_weights(config, config.init)
    base = config.model or weights.model
    model_config = replace(weights.model, num_classes=len(classes), stochastic_depth=_depth(config, base))
    model = build_model(model_config, norm=config.norm, seed=config.seed)
    body = {name: tensor for name, tensor in weights.tensors.items() if name not in LOGITS}
    load_tensors(model, body, origin=config.init)
    kept = new_head(model, config.head, weights=weights, classes=classes, seed=config.seed)
    facts = {key: weights.facts.get(key) for key in ("step", "samples_seen", "config_digest")}
    return model, model_config, {"init": config.init, "rows_kept": kept, **facts}


@torch.no_grad()
def new_head(model: CoAtNet, head: HeadConfig, *, weights: Weights, classes: Sequence[str], seed: int) -> int:
    """Fill the logits' layer and return how many of the checkpoint's rows were kept.

    Raises:
        UserError: rows are to be kept, but the checkpoint names no classes, or none of these.
    """
    logits = model.head.logits
    logits.bias.zero_()
    logits.weight.zero_()
    if head.init == "normal":
        logits.weight.normal_(std=_HEAD_STD, generator=torch.Generator().manual_seed(seed))
    if head.keep_rows == "none":
        return 0
    if weights.classes is None:
        raise UserError("head.keep_rows is 'matching', but the checkpoint carries no class names")
    pairs = [(new, old) for new, old in enumerate(match_classes(weights.classes, classes)) if old is not None]
    if not pairs:
        raise UserError(
            f"head.keep_rows is 'matching', but none of the {len(classes)} classes is among the checkpoint's "
            f"{len(weights.classes)}; allowed: none"
        )
    new, old = (torch.tensor(side) for side in zip(*pairs, strict=True))
    logits.weight[new] = weights.tensors[LOGITS[0]].float()[old]
    logits.bias[new] = weights.tensors[LOGITS[1]].float()[old]
    return len(pairs)


def frozen_modules(model: CoAtNet, parts: Sequence[str]) -> list[nn.Module]:
    """Stop the parts (S0 … S4, dense) from learning and return their modules."""
    frozen: list[nn.Module] = []
    for part in parts:
        if part == "S0":
            frozen.append(model.stem)
        elif part == "dense":
            frozen += [model.head.norm, model.head.dense]
        else:
            frozen.append(model.stages[part])
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def make_calendar(config: FinetuneConfig, *, epoch_samples: int) -> Calendar:
    """Return the run's calendar; `train.phases` share its duration.

    Raises:
        UserError: a run without a step.
    """
    batch, shares = config.train.global_batch, [phase.share for phase in config.train.phases]
    total = Duration.parse(config.train.duration).in_samples(epoch_samples=epoch_samples, global_batch=batch)
    changes = [
        Change(round(total * sum(shares[:number]) / sum(shares)), batch, phase.image_size)
        for number, phase in enumerate(config.train.phases)
    ]
    return Calendar.make(config, epoch_samples=epoch_samples, changes=changes)


def _initial_weights(config: FinetuneConfig, init: str) -> Weights:
    """Load a run's, a checkpoint's or an exported model's weights; or timm's, by `model.name` alone."""
    path = Path(init)
    if config.model and path.suffix == ".safetensors" and not (path.parent / CONFIG).exists():
        return foreign_weights(path, name=config.model.name, px=config.model.image_size)
    weights = load_weights(path, ema={"auto": None, "ema": True, "raw": False}[config.weights])
    if config.model is not None:
        _check_architecture(config.model, weights, origin=init)
    return weights


def _check_architecture(model: ModelConfig, weights: Weights, *, origin: str) -> None:
    wanted, found = (replace(one, **_NOT_ARCHITECTURE) for one in (model, weights.model))  # type: ignore[arg-type]
    for key in vars(wanted):
        if getattr(wanted, key) != getattr(found, key):
            raise UserError(
                f"model.{key} is {getattr(wanted, key)}, but {origin} holds a model with "
                f"{getattr(found, key)}; leave out `model` to take the checkpoint's"
            )


def _depth(config: FinetuneConfig, model: ModelConfig) -> float:
    return model.stochastic_depth if config.stochastic_depth is None else config.stochastic_depth
