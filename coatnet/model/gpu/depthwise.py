"""The depthwise 3×3 convolution on NHWC for GPUs, in Triton; any other device keeps torch's operator.

cuDNN's depthwise kernels reach a small part of the memory's speed on NHWC in bf16. Here a program walks down
a strip of columns: every row is read once from memory (its two shifted forms from the cache), is added to the
three output rows that it touches, and those stay in registers. Sums are in fp32, weights too; the gradient of
the weights is summed in a fixed order, so that it has the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coatnet.model.gpu import HAS_TRITON, ceil_div

# Elements of a program's row. With four for each of its threads no row goes through shared memory; the
# backward pass, which holds nine sums for each, is quicker with two (H200, benchmarks/gpu.md).
_TILE, _BACKWARD_TILE = 512, 256
_IMAGES = 4  # whose weight gradients one program sums


def fits(x: Tensor, *, stride: int) -> bool:
    """Return whether the kernel can take this map. Shape: x (B, H, W, C)."""
    return x.is_cuda and stride == 1 and x.dtype in (torch.bfloat16, torch.float32) and HAS_TRITON


@torch.library.custom_op("coatnet::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with one 3×3 filter per channel, padded by zeros to the same size.

    Shape: x (B, H, W, C), weight (C, 1, 3, 3) → (B, H, W, C), of x's type.
    """
    from coatnet.model.gpu import depthwise_kernels as kernels

    x = x.contiguous()
    batch, height, width, channels = x.shape
    y = torch.empty_like(x)
    columns, block = _tile(width, _TILE)
    kernels.convolve[ceil_div(channels, block), ceil_div(width, columns), batch](
        x, taps(weight), y, HEIGHT=height, WIDTH=width, CHANNELS=channels, COLUMNS=columns, BLOCK=block
    )
    return y


@depthwise.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("coatnet::depthwise_backward", mutates_args=())
def depthwise_backward(down: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the map and of the weights. Shape: down (B, H, W, C)."""
    from coatnet.model.gpu import depthwise_kernels as kernels

    down, x = down.contiguous(), x.contiguous()
    batch, height, width, channels = x.shape
    columns, block = _tile(width, _BACKWARD_TILE)
    grid = (ceil_div(channels, block), ceil_div(width, columns), ceil_div(batch, _IMAGES))
    down_x = torch.empty_like(x)
    parts = torch.empty(grid[1] * grid[2], 9, channels, dtype=torch.float32, device=x.device)
    kernels.backward[grid](
        down, x, taps(weight), down_x, parts, batch,
        HEIGHT=height, WIDTH=width, CHANNELS=channels, IMAGES=_IMAGES, COLUMNS=columns, BLOCK=block,
    )  # fmt: skip
    return down_x, parts.sum(dim=0).t().contiguous().view(weight.shape).to(weight.dtype)


@depthwise_backward.register_fake
def _(down: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, down: Tensor) -> tuple[Tensor, Tensor]:
    return depthwise_backward(down, *ctx.saved_tensors)


depthwise.register_autograd(_backward, setup_context=_save)


def taps(weight: Tensor) -> Tensor:
    """Lay filters out as the kernels read them. Shape: (C, 1, 3, 3) → (9, C) in fp32."""
    return weight.reshape(-1, 9).t().float().contiguous()


def _tile(width: int, elements: int) -> tuple[int, int]:
    """Return columns and channels of a program: columns that leave little over, and `elements` in all."""
    columns = min((8, 4, 16), key=lambda size: ceil_div(width, size) * size)
    return columns, elements // columns
