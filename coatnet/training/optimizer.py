"""AdamW for every stage: which parameters decay, how fast each layer learns, and the clipping of stage 0.

DeepSpeed would clip there without a look at NaNs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.model.network import CoAtNet
from coatnet.training.sections import OptimizerConfig


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips by the global norm and refuses a non-finite gradient, as ZeRO's wrappers do.

    DeepSpeed reads `overflow` and `_global_grad_norm` of whatever optimizer it holds.
    """

    def __init__(self, groups: Any, *, clip: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self._clip = clip
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip and update, or set `overflow` and leave everything as it is."""
        assert closure is None
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._global_grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        # The same arithmetic as ZeRO's unscale_and_clip_grads, so that the stages stay comparable.
        excess = (self._global_grad_norm + 1e-6) / self._clip if self._clip > 0 else 0.0
        if excess > 1:
            torch._foreach_mul_(gradients, 1.0 / excess)
        super().step()


class MasterAdamW(ClippedAdamW):
    """Clipped AdamW on fp32 master weights of bf16 parameters, for stage 0.

    Attributes:
        masters: by parameter, once `halve` has been called; before, an ordinary AdamW.
    """

    def __init__(self, groups: Any, *, clip: float, **options: Any) -> None:
        super().__init__(groups, clip=clip, **options)
        self.masters: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def halve(self) -> None:
        """Turn the parameters into bf16 and step on fp32 copies from now on.

        torch accumulates their gradients in fp32 (`grad_dtype`), and so DeepSpeed reduces them.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data.bfloat16()
                parameter.grad_dtype = torch.float32
                self.masters[parameter] = parameter.data.float()
            group["params"] = [self.masters[parameter] for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on the masters and round them into the parameters."""
        for parameter, master in self.masters.items():
            master.grad, parameter.grad = parameter.grad, None
        super().step(closure)
        for master in self.masters.values():
            master.grad = None
        if self.masters and not self.overflow:
            torch._foreach_copy_([parameter.data for parameter in self.masters], [*self.masters.values()])


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, *, stage: int, precision: str, layer_decay: float = 1.0
) -> ClippedAdamW | torch.optim.AdamW:
    """Return torch's fused AdamW over `parameter_groups`; at stage 0 one that clips.

    The other form fills four temporary tensors of the weights' size: 0.5 s of CPU for 25 M flat parameters.
    """
    groups = parameter_groups(model, config.weight_decay, layer_decay=layer_decay)
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.betas[0], config.betas[1]),
        "eps": config.eps,
        "fused": True,
    }
    if stage == 0:
        return (MasterAdamW if precision == "bf16" else ClippedAdamW)(groups, clip=config.clip, **options)
    return torch.optim.AdamW(groups, **options)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return AdamW's groups, [decaying, not decaying], in the model's order of parameters.

    No more than these two unless layers differ: many groups are slow under ZeRO.

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
