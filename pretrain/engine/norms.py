"""Which gradients are too large for a step, at stage 3 as at the others. Knows no model."""

from __future__ import annotations

from typing import Any

import torch


def refuse_what_overflows(optimizer: Any) -> None:
    """Let DeepSpeed's stage 3 refuse a gradient whose squared norm fp32 cannot hold.

    It takes norms in fp64, and any finite one. The other stages, and AdamW's second moment, hold squares in
    fp32: without clipping the moment would be infinite from then on, and no checkpoint could be saved.
    """
    norms = optimizer._get_norm_groups

    def limited() -> list[torch.Tensor]:
        found = torch.stack(norms())
        squares = found.float().square().sum()
        return list(torch.where(squares.isfinite(), found, torch.inf))

    optimizer._get_norm_groups = limited
