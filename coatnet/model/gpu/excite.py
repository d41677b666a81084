"""Squeeze-and-excite of a batch norm's GELU for GPUs, with the sums of all its gradients from one pass.

With n = (y − mean)·scale + bias, g = GELU(n), p the gradient of the gated map s·g, and m that of g's mean
over an image, the gradient at n is (p·s + m)·g′. So the sums that batch norm needs, over it and over it times
(y − mean), are sums of p·g′ and of g′ over images, times s and m. Those of p·g′ come with the gate's gradient
Σ p·g from one pass over p and y, those of g′ from the squeeze's own pass in forward. torch's order is a pass
for the gate, and only then one for the norm: 4 bytes more for each element in bf16.

What is left is pointwise, and a compiler's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coatnet.model.gpu import ceil_div
from coatnet.model.gpu.gelu import gelu, gelu_slope

# Of a program, and pixels that it loads at once; 196 divides 56², 28² and 14².
_CHANNELS, _PIXELS, _TURN = 256, 196, 4


@torch.library.custom_op("coatnet::gelu_sums", mutates_args=())
def gelu_sums(y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weights: Tensor | None) -> Tensor:
    """Sum g, g′ and g′·(y − mean) over each image, each element times its weight (1 without weights).

    Shape: y and weights (B, H, W, C), mean and scale (B, C), bias (C,) → (B, 3, C) in fp32.
    """
    from coatnet.model.gpu import excite_kernels as kernels

    y = y.contiguous()
    weighted = weights is not None
    weights = weights.contiguous() if weights is not None else y
    batch, height, width, channels = y.shape
    programs = ceil_div(height * width, _PIXELS)
    parts = torch.empty(batch, programs, 3, channels, dtype=torch.float32, device=y.device)
    shift = torch.addcmul(bias, mean, scale, value=-1.0)
    kernels.sums[ceil_div(channels, _CHANNELS), programs, batch](
        weights, y, mean.contiguous(), scale.contiguous(), shift, parts,
        WEIGHTED=weighted, ALL=height * width, CHANNELS=channels, PIXELS=_PIXELS, TURN=_TURN, BLOCK=_CHANNELS,
    )  # fmt: skip
    return parts.sum(dim=1)


@gelu_sums.register_fake
def _(y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weights: Tensor | None) -> Tensor:
    return mean.new_empty(mean.shape[0], 3, mean.shape[1])


def squeeze(y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the mean of GELU((y − mean)·scale + bias) over each image.

    Shape: y (B, H, W, C), mean and scale (B, C), bias (C,) → (B, C) in fp32.
    """
    return _Squeeze.apply(y, mean, scale, bias)


def excite(y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Return GELU((y − mean)·scale + bias) times each image's gate, of y's type. Shape: gate (B, C)."""
    return _Excite.apply(y, mean, scale, bias, gate)


class _Squeeze(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        sums = gelu_sums(y, mean, scale, bias, None)
        ctx.save_for_backward(y, mean, scale, bias, sums)
        return sums[:, 0] / (y.shape[1] * y.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, mean, scale, bias, sums = ctx.saved_tensors
        return _gradients(y, mean, scale, bias, sums, down / (y.shape[1] * y.shape[2]), None)


class _Excite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(y, mean, scale, bias, gate)
        gated = gelu(_normal(y, mean, scale, bias)) * gate[:, None, None]
        # Compiled by torch 2.11, a `to` that converts nothing is returned without a gradient.
        return gated if gated.dtype == y.dtype else gated.to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        y, mean, scale, bias, gate = ctx.saved_tensors
        sums = gelu_sums(y, mean, scale, bias, down)
        return *_gradients(y, mean, scale, bias, sums, gate.float(), down), sums[:, 0].to(gate.dtype)


def _gradients(
    y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, sums: Tensor, factor: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of y, mean, scale and bias; n's is factor·weights·g′. Shape: factor (B, C)."""
    # Written otherwise than in forward: of what both have in common, compilers keep a map in fp32.
    shift = torch.addcmul(bias, mean, scale, value=-1.0)
    down = (factor * scale)[:, None, None] * gelu_slope(y * scale[:, None, None] + shift[:, None, None])
    if weights is not None:
        down = down * weights
    shifts = factor * sums[:, 1]
    return down.to(y.dtype), -scale * shifts, factor * sums[:, 2], shifts.sum(dim=0)


def _normal(y: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return (y.float() - mean[:, None, None]) * scale[:, None, None] + bias
