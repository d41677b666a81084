"""AdamW for every stage, and the clipping of stage 0, which DeepSpeed would do without a look at NaNs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from coatnet.training.parameters import parameter_groups


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


def make_optimizer(
    model: nn.Module,
    *,
    stage: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float,
) -> torch.optim.AdamW:
    """Return torch's AdamW over two parameter groups; fused on a GPU."""
    groups = parameter_groups(model, weight_decay)
    options: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "fused": torch.cuda.is_available()}
    if stage == 0:
        return ClippedAdamW(groups, clip=clip, **options)
    return torch.optim.AdamW(groups, **options)
