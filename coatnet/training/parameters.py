"""Which parameters decay. Two groups and no more: many groups are slow under ZeRO."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return [decaying, not decaying] for AdamW, in the model's order of parameters.

    Biases, norm scales and the relative-bias tables do not decay.

    Source: google-research/maxvit (the closest published code).
    """
    decaying: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decaying if decays(name, parameter) else exempt).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies: a kernel does, a vector or a bias of any form does not."""
    # Under ZeRO-3 a partitioned parameter is empty; its true shape is kept in `ds_shape`.
    dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
    leaf = name.rpartition(".")[2]
    return dimensions > 1 and leaf != "table" and "bias" not in leaf
