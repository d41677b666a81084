"""Which parameters learn, and how fast: frozen parts, and rates that fall from the head to the stem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from coatnet.model.network import CoAtNet
from coatnet.training.parameters import decays
from finetune.config import FinetuneOptimizerConfig


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


def scaled_groups(model: CoAtNet, optimizer: FinetuneOptimizerConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups, each with the `scale` of its learning rate.

    The head has scale 1, the last block `layer_decay`, the one before its square, down to the stem.

    Source: Clark et al., arXiv 2003.10555 (ELECTRA), section 3.3; Bao et al., arXiv 2106.08254 (BEiT).
    """
    layers = [model.stem, *(block for _, block in model.blocks()), model.head]
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for depth, layer in enumerate(layers):
        scale = optimizer.layer_decay ** (len(layers) - 1 - depth)
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad:
                decay = optimizer.weight_decay if decays(name, parameter) else 0.0
                group = {"params": [], "weight_decay": decay, "scale": scale}
                groups.setdefault((scale, decay), group)["params"].append(parameter)
    return list(groups.values())
