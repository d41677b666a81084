"""The model that fine-tuning begins with: a checkpoint's weights under a new head, or fresh ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coatnet.checkpoint.weights import Weights, load_weights
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import CoAtNet, build_model
from finetune.classes import match_classes
from finetune.config import FinetuneConfig, HeadConfig

_HEAD_STD = 0.02
_LOGITS = ("head.logits.weight", "head.logits.bias")
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
    weights = load_weights(config.init, ema={"auto": None, "ema": True, "raw": False}[config.weights])
    _check_architecture(config, weights)
    base = config.model or weights.model
    model_config = replace(weights.model, num_classes=len(classes), stochastic_depth=_depth(config, base))
    model = build_model(model_config, norm=config.norm, seed=config.seed)
    body = {name: tensor for name, tensor in weights.tensors.items() if name not in _LOGITS}
    load_tensors(model, body, origin=config.init)
    kept = new_head(model, config.head, weights=weights, classes=classes, seed=config.seed)
    return model, model_config, {"init": str(config.init), "rows_kept": kept, **_history(weights)}


@torch.no_grad()
def load_tensors(model: CoAtNet, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy tensors into the model, except the logits' layer where none is given for it.

    Raises:
        UserError: a tensor is missing, unknown or of another shape.
    """
    own = model.state_dict()
    expected = own.keys() if tensors.keys() & set(_LOGITS) else own.keys() - set(_LOGITS)
    for name in sorted(expected | tensors.keys()):
        if name not in own or name not in tensors:
            where = "the model" if name not in own else "the checkpoint"
            raise UserError(f"{origin}: {where} has no tensor {name}")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, the model's is {tuple(own[name].shape)}"
            raise UserError(f"{origin}: {name} has shape {shapes}")
        own[name].copy_(tensors[name])


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
    logits.weight[new] = weights.tensors[_LOGITS[0]].float()[old]
    logits.bias[new] = weights.tensors[_LOGITS[1]].float()[old]
    return len(pairs)


def _check_architecture(config: FinetuneConfig, weights: Weights) -> None:
    if config.model is None:
        return
    wanted, found = (replace(one, **_NOT_ARCHITECTURE) for one in (config.model, weights.model))  # type: ignore[arg-type]
    for key in vars(wanted):
        if getattr(wanted, key) != getattr(found, key):
            raise UserError(
                f"model.{key} is {getattr(wanted, key)}, but {config.init} holds a model with "
                f"{getattr(found, key)}; leave out `model` to take the checkpoint's"
            )


def _depth(config: FinetuneConfig, model: ModelConfig) -> float:
    return model.stochastic_depth if config.stochastic_depth is None else config.stochastic_depth


def _history(weights: Weights) -> dict[str, Any]:
    known = ("step", "samples_seen", "config_digest")
    return {key: weights.facts[key] for key in known if key in weights.facts}
