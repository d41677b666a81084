"""What fine-tuning begins with: a checkpoint's weights under a new head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coatnet.checkpoint.classes import matching_rows
from coatnet.checkpoint.inspection import check_architecture, is_bare
from coatnet.checkpoint.weights import LOGITS, Weights, load_tensors, load_weights
from coatnet.model.network import CoAtNet, build_model
from finetune.choices import WEIGHTS
from finetune.config import FinetuneConfig
from finetune.handover.importing import foreign_weights


def starting_model(config: FinetuneConfig, *, classes: Sequence[str]) -> tuple[CoAtNet, dict[str, Any]]:
    """Return the model on the CPU, and where it comes from.

    From scratch the relative-bias tables are laid out for `augment.image_size`; from a checkpoint they keep
    their grid and are resized in the model, so that the parameters stay those of pretraining.

    Raises:
        UserError: the checkpoint is of another architecture than `model`, or its tensors do not fit.
    """
    weights = None if config.init is None else _initial_weights(config, config.init)
    wanted = config.model if weights is None else config.model or weights.model
    assert wanted is not None  # the schema's own check
    own = wanted.stochastic_depth if config.stochastic_depth is None else config.stochastic_depth
    if weights is None:
        size = config.augment.image_size
        fresh = replace(wanted, num_classes=len(classes), image_size=size, stochastic_depth=own)
        return build_model(fresh, norm=config.norm, seed=config.seed), {"init": None, "said": ""}
    model = build_model(replace(weights.model, stochastic_depth=own), device="meta", norm=config.norm)
    load_tensors(model, weights.tensors, device="cpu", origin=str(config.init))
    model.resize_head(len(classes), init=config.head.init, seed=config.seed)
    kept = _keep_rows(model, weights, classes=classes) if config.head.keep_rows == "matching" else 0
    facts = {key: weights.facts.get(key) for key in ("step", "samples_seen", "config_digest")}
    said = f" from {config.init} under a new head" + (f" that knows {kept} classes already" if kept else "")
    return model, {"init": config.init, "rows_kept": kept, "said": said, **facts}


@torch.no_grad()
def _keep_rows(model: CoAtNet, weights: Weights, *, classes: Sequence[str]) -> int:
    """Copy the rows of the logits' layer whose classes the checkpoint knows, and return how many."""
    pairs = matching_rows(weights.classes, classes)
    new, old = (torch.tensor(side) for side in zip(*pairs, strict=True))
    for name in LOGITS:
        model.get_parameter(name)[new] = weights.tensors[name].float()[old]
    return len(pairs)


def _initial_weights(config: FinetuneConfig, init: str) -> Weights:
    """Load a run's, a checkpoint's or an exported model's weights; or timm's, by `model.name` alone."""
    path = Path(init)
    if config.model and is_bare(path):
        return foreign_weights(path, name=config.model.name, px=config.model.image_size)
    weights = load_weights(path, ema=WEIGHTS[config.weights])
    if config.model is not None:
        check_architecture(config.model, weights.model, origin=init)
    return weights
