"""Moments of groups of images for GPUs, in one pass.

torch's gradient of `var_mean` takes the mean of the map once more, a pass of its own; this one keeps it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coatnet.model.gpu import HAS_TRITON, ceil_div

_CHANNELS, _ROWS, _TURN = 256, 512, 4  # of a program, and rows that it loads at once


def fits(x: Tensor) -> bool:
    """Return whether this and the other kernels of MBConv can take a map. Shape: x (B, H, W, C)."""
    return x.is_cuda and HAS_TRITON and x.dtype in (torch.bfloat16, torch.float32)


@torch.library.custom_op("coatnet::moments", mutates_args=())
def moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each of `groups` equal parts of the batch.

    Shape: x (B, H, W, C) → (groups, C) each in fp32.
    """
    from coatnet.model.gpu import moments_kernels as kernels

    x = x.contiguous()
    channels = x.shape[-1]
    rows = x.numel() // (groups * channels)
    programs = ceil_div(rows, _ROWS)
    parts = torch.empty(groups, programs, 2, channels, dtype=torch.float32, device=x.device)
    kernels.moments[ceil_div(channels, _CHANNELS), programs, groups](
        x, parts, rows, CHANNELS=channels, ROWS=_ROWS, TURN=_TURN, BLOCK=_CHANNELS
    )
    return merge(parts, size=_ROWS, total=rows)


@moments.register_fake
def _(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(groups, x.shape[-1], dtype=torch.float32)
    return mean, torch.empty_like(mean)


def _save(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _backward(ctx: Any, down_mean: Tensor, down_variance: Tensor) -> tuple[Tensor, None]:
    x, mean = ctx.saved_tensors
    groups, channels = mean.shape
    rows = x.numel() // (groups * channels)
    slope = (2.0 / rows * down_variance)[:, None]
    level = (down_mean / rows)[:, None] - mean[:, None] * slope
    return (x.view(groups, rows, channels) * slope + level).to(x.dtype).view(x.shape), None


moments.register_autograd(_backward, setup_context=_save)


def merge(parts: Tensor, *, size: int, total: int) -> tuple[Tensor, Tensor]:
    """Merge means and sums of squared deviations of a group's parts into its mean and variance.

    Args:
        parts: in which the last of a group may be smaller.
        size: elements in each of the others.
        total: elements in all parts of a group.

    Shape: parts (groups, parts, 2, C) → (groups, C) each.
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances".
    """
    # Filled on the device: a copy from the host would wait for it.
    share = torch.full((parts.shape[1], 1), size / total, device=parts.device)
    share[-1] = 1.0 - (parts.shape[1] - 1) * size / total
    means, squares = parts.unbind(dim=2)
    mean = (means * share).sum(dim=1)
    spread = ((means - mean[:, None]).square() * share).sum(dim=1)
    return mean, spread + squares.sum(dim=1) / total
