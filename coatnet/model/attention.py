"""Relative attention: softmax(q·k/√d + w[i−j]) with one table of offsets per head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from coatnet.model.gpu import at_least_fp32
from coatnet.model.gpu import attention as gpu

# cuDNN's kernel is left out: with a mask it gives NaN gradients where N % 128 == 64 (pytorch#196678: 384 px
# has N = 576) and reads an fp32 mask as bf16 (pytorch#191612). Flash takes no mask.
_SAFE_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class RelativeBias(nn.Module):
    """One scalar per head and offset; stored at the pretraining grid, resized in the graph for other grids.

    Shape: table (heads, 2H−1, 2W−1) → bias (heads, H′·W′, H′·W′).
    Source: paper eq. 3 and appendix A.1 (bilinear, half-pixel centres, no antialias).
    """

    def __init__(self, heads: int, *, grid: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(heads, 2 * grid - 1, 2 * grid - 1))
        self._cached: tuple[tuple[object, ...], Tensor] | None = None

    def train(self, mode: bool = True) -> RelativeBias:
        """Set the mode; an evaluation keeps nothing of one before it, whose weights may have been others.

        Engines write weights, and their averages, through `data`, which counts no version.
        """
        self._cached = None
        return super().train(mode)

    def forward(self, height: int, width: int) -> Tensor:
        # A compiled graph keeps nothing: it would break here, and be made anew for each version.
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._cached = None
            return self._bias(height, width)
        key = (height, width, self.table._version, self.table.device, self.table.dtype)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._bias(height, width))
        return self._cached[1]

    def _bias(self, height: int, width: int) -> Tensor:
        table = at_least_fp32(self.table)
        if table.shape[1:] != (2 * height - 1, 2 * width - 1):
            table = _resize(table, 2 * height - 1, 2 * width - 1)
        if torch.is_grad_enabled() and table.requires_grad:
            return _Spread.apply(table, height, width)
        return _spread(table, height, width)


def _resize(table: Tensor, height: int, width: int) -> Tensor:
    """Resize bilinearly, by products: on a GPU `interpolate` scatters its gradient, in an order of its own.

    Shape: (heads, h, w) → (heads, height, width).
    """
    with torch.autocast(table.device.type, enabled=False):
        rows, columns = _bilinear(height, table.shape[1], table), _bilinear(width, table.shape[2], table)
        return rows @ table @ columns.T


def _bilinear(size: int, old: int, like: Tensor) -> Tensor:
    """Return each new place's weights on the old ones, half-pixel centres. Shape: (size, old)."""
    new = torch.arange(size, device=like.device, dtype=torch.float64)
    at = ((new + 0.5) * (old / size) - 0.5).clamp(0, old - 1)
    distance = at[:, None] - torch.arange(old, device=like.device, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0).to(like.dtype)


def _spread(table: Tensor, height: int, width: int) -> Tensor:
    """Give each pair of positions its offset's entry. Shape: (heads, 2H−1, 2W−1) → (heads, H·W, H·W)."""
    rows = torch.arange(height, device=table.device)
    columns = torch.arange(width, device=table.device)
    row_offset = rows[:, None] - rows[None, :] + height - 1
    column_offset = columns[:, None] - columns[None, :] + width - 1
    # Row stride 2W−1: with W instead, different offsets would collide.
    index = row_offset[:, None, :, None] * (2 * width - 1) + column_offset[None, :, None, :]
    tokens = height * width
    return table.flatten(1)[:, index.reshape(-1)].view(-1, tokens, tokens)


def _gather(down: Tensor, height: int, width: int) -> Tensor:
    """Sum over the pairs of each offset: `_spread` turned round."""
    heads = down.shape[0]
    pairs = down.view(heads, height, width, height, width).transpose(2, 3)  # (heads, i, j, i′, j′)
    by_column = _sum_diagonals(pairs)  # (heads, i, j, 2W−1)
    return _sum_diagonals(by_column.permute(0, 3, 1, 2)).transpose(1, 2)


def _sum_diagonals(square: Tensor) -> Tensor:
    """Sum x[i, j] by i − j + n − 1. Shape: (…, n, n) → (…, 2n−1).

    Rows padded to 2n and read anew with a length of 2n − 1 move to the right by one each. A scatter would
    sum in an order of its own on a GPU, or sort.
    """
    n = square.shape[-1]
    padded = F.pad(square.flip(-1), (0, n)).flatten(-2)[..., : n * (2 * n - 1)]
    return padded.unflatten(-1, (n, 2 * n - 1)).sum(dim=-2)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, height: int, width: int) -> Tensor:
        ctx.size = height, width
        return _spread(table, height, width)

    @staticmethod
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor, None, None]:
        return _gather(down, *ctx.size), None, None


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Return softmax(q·k/√d + bias)·v, the softmax in fp32; the reference, and the quickest on a CPU.

    Shape: q, k, v (B, heads, N, d); bias (heads, N, N) → (B, heads, N, d).
    Source: paper eq. 3.
    """
    scores = at_least_fp32((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The same by a kernel that keeps no scores and works in fp32 inside; the mask has q's dtype."""
    mask = None if bias is None else bias.to(q.dtype)[None]
    with sdpa_kernel(_SAFE_KERNELS):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class RelativeAttention(nn.Module):
    """Multi-head self-attention over all positions. Shape: (B, H, W, Cin) → (B, H, W, C)."""

    def __init__(self, width_in: int, width: int, *, head_size: int, grid: int, relative: bool) -> None:
        super().__init__()
        self.heads, self.head_size = width // head_size, head_size
        self.query = nn.Linear(width_in, width)
        self.key = nn.Linear(width_in, width)
        self.value = nn.Linear(width_in, width)
        self.bias = RelativeBias(self.heads, grid=grid) if relative else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        split = (batch, height * width, self.heads, self.head_size)
        q, k, v = (linear(x).reshape(split) for linear in (self.query, self.key, self.value))
        bias = None if self.bias is None else self.bias(height, width)
        if bias is not None and gpu.fits(q):
            mixed, _ = gpu.attention(q, k, v, bias)
        else:
            attend = fused_attention if q.is_cuda else plain_attention
            q, k, v = (one.transpose(1, 2) for one in (q, k, v))
            mixed = attend(q, k, v, bias).transpose(1, 2)
        return self.out(mixed.reshape(batch, height, width, self.heads * self.head_size))
