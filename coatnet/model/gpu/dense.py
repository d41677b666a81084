"""The stem's dense 3×3 convolutions on a GPU, whose gradient of the weights has the same bits every time.

cuDNN's quick kernels for it race; those that do not are suspected of taking most of a step where torch may
use no others (benchmarks/gpu.md). Products have neither fault: with zeros around both maps, laid out flat,
each of the nine taps is one product of the map, shifted by an offset, and the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from coatnet.model.gpu import at_least_fp32


def fits(x: Tensor, weight: Tensor) -> bool:
    """Return whether it is dense, and trained on a GPU. Shape: x (B, H, W, Cin), weight (C, Cin, 3, 3)."""
    return x.is_cuda and weight.shape[1] == x.shape[3] and torch.is_grad_enabled()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: str) -> Tensor:
    """Convolve as `blocks.convolve` does."""
    if torch.is_autocast_enabled("cuda"):
        x = x.to(torch.get_autocast_dtype("cuda"))
    return _Dense.apply(x, weight, bias, stride, padding)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: str
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.before = stride, 0 if stride == 2 and padding == "same" else 1
        ctx.has_bias = bias is not None
        bias = None if bias is None else bias.to(x.dtype)
        padded = F.pad(x.permute(0, 3, 1, 2), _around(ctx.before))
        return F.conv2d(padded, weight.to(x.dtype), bias, stride=stride).permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        down_weight = weight_gradient(x, down, stride=ctx.stride, before=ctx.before).to(weight.dtype)
        down_bias = down.sum(dim=(0, 1, 2), dtype=weight.dtype) if ctx.has_bias else None
        down_x = _map_gradient(down, weight.to(down.dtype), x, ctx) if ctx.needs_input_grad[0] else None
        return down_x, down_weight, down_bias, None, None


def weight_gradient(x: Tensor, down: Tensor, *, stride: int, before: int) -> Tensor:
    """Return the gradient of the filters, in fp32 or wider.

    Args:
        before: rows of zeros above and columns of zeros left of the map; as many as needed follow.

    Shape: x (B, H, W, Cin), down (B, H/stride, W/stride, C) → (C, Cin, 3, 3).
    """
    if stride == 2:  # each tap sees every other row and column; few channels come in
        padded, (height, width) = F.pad(x, (0, 0, *_around(before))), down.shape[1:3]
        taps = [padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
        rows = torch.stack(taps, dim=-1).reshape(-1, 9 * x.shape[3])
        return at_least_fp32(down.reshape(-1, down.shape[3]).t() @ rows).view(down.shape[3], x.shape[3], 3, 3)
    flat_x = F.pad(x, (0, 0, 1, 1, 1, 1)).flatten(0, 2)
    flat_down = F.pad(down, (0, 0, 0, 2, 0, 2)).flatten(0, 2)
    row, count = x.shape[2] + 2, flat_x.shape[0]
    offsets = [i * row + j for i in range(3) for j in range(3)]
    products = [flat_down[: count - offset].t() @ flat_x[offset:] for offset in offsets]
    return at_least_fp32(torch.stack(products, dim=-1)).view(down.shape[3], x.shape[3], 3, 3)


def _map_gradient(down: Tensor, weight: Tensor, x: Tensor, ctx: Any) -> Tensor:
    """Return the gradient of the map, by a forward convolution where the stride is 1."""
    if ctx.stride == 1:
        turned = weight.flip(2, 3).transpose(0, 1)
        return F.conv2d(down.permute(0, 3, 1, 2), turned, padding=1).permute(0, 2, 3, 1)
    height, width = x.shape[1:3]
    whole = F.conv_transpose2d(down.permute(0, 3, 1, 2), weight, stride=2)
    whole = F.pad(whole, (0, 1, 0, 1)).permute(0, 2, 3, 1)
    return whole[:, ctx.before : ctx.before + height, ctx.before : ctx.before + width]


def _around(before: int) -> tuple[int, int, int, int]:
    return (before, 1, before, 1)
