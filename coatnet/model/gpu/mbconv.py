"""The middle of an MBConv block for GPUs, in Triton: batch norm and GELU before the depthwise convolution in
its pass, the moments for the batch norm behind it too; backwards its gradients and that GELU's in one pass.

Bytes moved for each element of the expanded map in bf16, without and with it:

| pass | torch's operators, compiled | fused |
|---|---|---|
| first norm's moments | 2 | 2 |
| first norm and GELU, depthwise convolution | 2 + 2, 2 + 2 | 2 + 2 |
| second norm's moments | 2 | 0 |
| depthwise convolution backwards | 4 + 2 | 4 + 2 |
| GELU and the sums of the first norm's gradient | 4 | 0 |
| the first norm's gradient | 4 + 2 | 4 + 2 |

26 become 18, and the activated map is not kept for the backward pass: 2 bytes less of memory.
No sum crosses programs, and what they leave is added in a fixed order: the bits are the same every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coatnet.model.gpu import ceil_div
from coatnet.model.gpu.depthwise import taps
from coatnet.model.gpu.moments import merge

_CHANNELS = 256  # of a program, two for each thread; half, where that leaves half of a program over
_IMAGES = 2  # whose sums one program of the backward pass adds


@torch.library.custom_op("coatnet::activate_convolve", mutates_args=())
def activate_convolve(
    e: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the depthwise convolution y of GELU((e − mean)·scale + bias), and y's mean and variance.

    Each of the groups, equal parts of the batch, has a mean and a scale of its own, and gives moments.

    Shape: e (B, H, W, C), mean and scale (groups, C), bias (C,), weight (C, 1, 3, 3) → y like e, of its type;
        mean and biased variance (groups, C) in fp32.
    """
    from coatnet.model.gpu import mbconv_kernels as kernels

    e = e.contiguous()
    batch, height, width, channels = e.shape
    groups, strips = mean.shape[0], ceil_div(width, _columns(width))
    y = torch.empty_like(e)
    parts = torch.empty(groups, batch // groups, strips, 2, channels, dtype=torch.float32, device=e.device)
    sizes = _sizes(e)
    kernels.forward[ceil_div(channels, sizes["BLOCK"]), strips, batch](
        e, scale.contiguous(), _shift(mean, scale, bias), taps(weight), y, parts, batch // groups, **sizes
    )
    return y, *_moments(parts, width=width, rows=height)


@activate_convolve.register_fake
def _(e: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_y, variance = (mean.new_empty(mean.shape, dtype=torch.float32) for _ in range(2))
    return e.new_empty(e.shape), of_y, variance


@torch.library.custom_op("coatnet::activate_convolve_backward", mutates_args=())
def activate_convolve_backward(
    down: Tensor, e: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of n = (e − mean)·scale + bias and of the weights, and n's sums.

    Shape: like e; like weight; (groups, 2, C): Σ down_n and Σ down_n·(e − mean).
    """
    from coatnet.model.gpu import mbconv_kernels as kernels

    down, e = down.contiguous(), e.contiguous()
    batch, _, width, channels = e.shape
    groups, sizes = mean.shape[0], _sizes(e)
    strips, turns = ceil_div(width, sizes["COLUMNS"]), ceil_div(batch // groups, _IMAGES)
    down_n = torch.empty_like(e)
    parts = torch.empty(groups, turns * strips, 11, channels, dtype=torch.float32, device=e.device)
    kernels.backward[ceil_div(channels, sizes["BLOCK"]), strips, groups * turns](
        down, e, mean.contiguous(), scale.contiguous(), _shift(mean, scale, bias), taps(weight), down_n,
        parts, batch // groups, IMAGES=_IMAGES, **sizes,
    )  # fmt: skip
    sums = parts.sum(dim=1)
    down_weight = sums[:, :9].sum(dim=0).t().contiguous().view(weight.shape)
    return down_n, down_weight.to(weight.dtype), sums[:, 9:].contiguous()


@activate_convolve_backward.register_fake
def _(
    down: Tensor, e: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sums = mean.new_empty(mean.shape[0], 2, mean.shape[1])
    return e.new_empty(e.shape), weight.new_empty(weight.shape), sums


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output[:2])


def _backward(ctx: Any, down: Tensor, down_mean: Tensor, down_variance: Tensor) -> tuple[Tensor, ...]:
    e, mean, scale, bias, weight, y, y_mean = ctx.saved_tensors
    groups, channels = mean.shape
    count = e.numel() // (groups * channels)
    # The moments' gradients come back into the map: pointwise, so that compilers do it where `down` is made.
    centred = y.view(groups, -1, channels).float() - y_mean[:, None]
    slope, level = (2.0 / count * down_variance)[:, None], (down_mean / count)[:, None]
    down = (down.reshape(centred.shape).float() + centred * slope + level).to(y.dtype).view(y.shape)
    down_n, down_weight, sums = activate_convolve_backward(down, e, mean, scale, bias, weight)
    down_e = (down_n.view(centred.shape) * scale[:, None]).to(e.dtype).view(e.shape)
    return down_e, -scale * sums[:, 0], sums[:, 1], sums[:, 0].sum(dim=0), down_weight


activate_convolve.register_autograd(_backward, setup_context=_save)


def _shift(mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias, mean, scale, value=-1.0)


def _moments(parts: Tensor, *, width: int, rows: int) -> tuple[Tensor, Tensor]:
    """Merge strips into images and these into groups. Shape: parts (groups, images, strips, 2, C)."""
    groups, images, _, _, channels = parts.shape
    pixels = rows * width
    mean, variance = merge(parts.flatten(0, 1), size=rows * _columns(width), total=pixels)
    parts = torch.stack((mean, variance * pixels), dim=1).view(groups, images, 2, channels)
    return merge(parts, size=pixels, total=images * pixels)


def _columns(width: int) -> int:
    """Return the columns of a strip: those that leave least over. 56, 28 and 14 are sevens."""
    return min((7, 8, 6), key=lambda size: ceil_div(width, size) * size)


def _sizes(e: Tensor) -> dict[str, int]:
    """Return what both kernels are compiled for."""
    _, height, width, channels = e.shape
    block = _CHANNELS if channels % _CHANNELS == 0 else _CHANNELS // 2
    return {
        "HEIGHT": height, "WIDTH": width, "CHANNELS": channels,
        "COLUMNS": _columns(width), "BLOCK": block, "num_warps": block // 64,
    }  # fmt: skip
