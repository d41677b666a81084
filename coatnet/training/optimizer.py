"""AdamW for every stage, and the clipping of stage 0, which DeepSpeed would do without a look at NaNs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coatnet.training.parameters import parameter_groups
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
        norm = torch.nn.utils.get_total_norm(gradients)
        self._global_grad_norm = float(norm)
        self.overflow = not bool(torch.isfinite(norm))
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
