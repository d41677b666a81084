"""Max pooling by 2×2 whose gradient the compiler can fuse with its neighbours.

torch's operator keeps an index for every square and scatters the gradient into a map of zeros, in fp32. Here
each position asks whether it was the first of its square to hold the maximum: what torch's index says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def max_pool(x: Tensor) -> Tensor:
    """Take the maximum of every 2×2 square; compiled and uncompiled to the same bits, forwards and backwards.

    Shape: (B, H, W, C) → (B, H/2, W/2, C).
    """
    if torch.compiler.is_compiling() and x.requires_grad:
        return FusibleMaxPool.apply(x)
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class FusibleMaxPool(torch.autograd.Function):
    """The pooling as pointwise operators; uncompiled that would be a dozen passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Shape: (B, H, W, C) → (B, H/2, W/2, C)."""
        ctx.save_for_backward(x)
        a, b, c, d = _corners(x)
        return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Give each square's gradient to the first of its positions that holds the maximum."""
        (x,) = ctx.saved_tensors
        a, b, c, d = _corners(x)
        upper = torch.maximum(a, b) >= torch.maximum(c, d)
        first = torch.where(upper, torch.where(a >= b, 0, 1), torch.where(c >= d, 2, 3))
        corner = torch.arange(4, device=x.device).view(2, 1, 2, 1)  # row and column within a square
        return torch.where(_spread(first) == corner, _spread(grad), 0).reshape(x.shape)


def _corners(x: Tensor) -> list[Tensor]:
    """The four positions of each square, in the order in which torch looks for the maximum."""
    return [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]


def _spread(squares: Tensor) -> Tensor:
    """Show every square's value at its four positions. Shape: (B, h, w, C) → (B, h, 1, w, 1, C)."""
    return squares[:, :, None, :, None]
