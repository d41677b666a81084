"""Which parameters decay, and how fast each layer learns.

Pretraining has two groups and no more: many groups are slow under ZeRO.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from coatnet.model.network import CoAtNet


def parameter_groups(
    model: nn.Module, weight_decay: float, *, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW's groups, [decaying, not decaying], in the model's order of parameters.

    Biases, norm scales and the relative-bias tables do not decay. With `layer_decay` below 1 there is such a
    pair for each layer, and `scale` is what its learning rate is multiplied by: 1 for the head, `layer_decay`
    for the last block, its square for the one before, down to the stem.

    Source: google-research/maxvit (the closest published code); Clark et al., arXiv 2003.10555 (ELECTRA),
        section 3.3, and Bao et al., arXiv 2106.08254 (BEiT) for the layers.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for layer, scale in _layers(model, layer_decay):
        for decaying in (True, False):
            group = {"params": [], "weight_decay": weight_decay if decaying else 0.0, "scale": scale}
            groups.setdefault((scale, decaying), group)
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad:
                groups[scale, decays(name, parameter)]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _layers(model: nn.Module, layer_decay: float) -> list[tuple[nn.Module, float]]:
    if layer_decay == 1.0:
        return [(model, 1.0)]
    assert isinstance(model, CoAtNet), "only its layers are known"
    layers = [model.stem, *(block for _, block in model.blocks()), model.head]
    return [(layer, layer_decay ** (len(layers) - 1 - depth)) for depth, layer in enumerate(layers)]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies: a kernel does, a vector or a bias of any form does not."""
    # Under ZeRO-3 a partitioned parameter is empty; its true shape is kept in `ds_shape`.
    dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
    leaf = name.rpartition(".")[2]
    return dimensions > 1 and leaf != "table" and "bias" not in leaf
