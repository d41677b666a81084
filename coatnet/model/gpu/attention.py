"""Relative attention for GPUs, in Triton, with the gradient of its bias; any other device keeps torch's.

torch's kernels that take a bias give its gradient for every image, (B, heads, N, N), to be summed afterwards;
cuDNN's gives none. Here a program sums a tile of it over the images in registers. The bias stays in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coatnet.model.gpu import HAS_TRITON, ceil_div

_ROWS = _COLUMNS = 64
_FEW_COLUMNS = 32  # in loops over many columns: quicker at N = 196 (H200, benchmarks/gpu.md)
_PROGRAMS = 1536  # among which the bias's gradient is divided: some ten for each multiprocessor
_LOG2_E = 1.4426950408889634


def fits(q: Tensor) -> bool:
    """Return whether the kernels can take it. Shape: q (B, N, heads, D)."""
    return q.is_cuda and HAS_TRITON and q.dtype == torch.bfloat16 and q.shape[-1] in (16, 32, 64, 128)


@torch.library.custom_op("coatnet::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(q·k/√D + bias)·v, and what the backward pass needs of the softmax.

    Shape: q, k, v (B, N, heads, D), bias (heads, N, N) in fp32 → the same as q, and (B, heads, N) in fp32.
    """
    from coatnet.model.gpu import attention_kernels as kernels

    q, k, v, bias = (one.contiguous() for one in (q, k, v, bias))
    batch, tokens, heads, size = q.shape
    y = torch.empty_like(q)
    sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device)
    kernels.forward[ceil_div(tokens, _ROWS), heads, batch](
        q, k, v, bias, y, sums, _scale(size), **_sizes(q, by_columns=True)
    )
    return y, sums


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


@torch.library.custom_op("coatnet::attention_backward", mutates_args=())
def attention_backward(
    down: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, y: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and bias."""
    from coatnet.model.gpu import attention_kernels as kernels

    down, q, k, v, bias = (one.contiguous() for one in (down, q, k, v, bias))
    batch, tokens, heads, size = q.shape
    down_q, down_k, down_v = (torch.empty_like(q) for _ in range(3))
    dots, scale, sizes = torch.empty_like(sums), _scale(size), _sizes(q) | _unspilled(size)
    rows, columns = ceil_div(tokens, sizes["ROWS"]), ceil_div(tokens, _COLUMNS)
    images = ceil_div(batch * rows * columns * heads, _PROGRAMS)  # over which one program sums
    splits = ceil_div(batch, images)
    kernels.query_gradient[ceil_div(tokens, _ROWS), heads, batch](
        q, k, v, bias, y, down, sums, dots, down_q, scale, **_sizes(q, by_columns=True)
    )
    kernels.key_value_gradient[columns, heads, batch](
        q, k, v, bias, down, sums, dots, down_k, down_v, scale, **sizes
    )
    parts = torch.empty(splits, *bias.shape, dtype=torch.float32, device=q.device)
    kernels.bias_gradient[rows * columns, heads, splits](
        q, k, v, bias, down, sums, dots, parts, batch, scale, IMAGES=images, **sizes
    )
    return down_q, down_k, down_v, parts.sum(dim=0)


@attention_backward.register_fake
def _(
    down: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, y: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    down_q, down_k, down_v = (q.new_empty(q.shape) for _ in range(3))
    return down_q, down_k, down_v, bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, down: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return attention_backward(down, *ctx.saved_tensors)


attention.register_autograd(_backward, setup_context=_save)


def _scale(size: int) -> float:
    return float(size**-0.5 * _LOG2_E)


def _sizes(q: Tensor, *, by_columns: bool = False) -> dict[str, int]:
    """Return the kernels' constants: the shape, and the tile of a program or of a turn of its loop."""
    columns = _FEW_COLUMNS if by_columns and q.shape[1] > _COLUMNS else _COLUMNS
    return {"N": q.shape[1], "HEADS": q.shape[2], "D": q.shape[3], "ROWS": _ROWS, "COLUMNS": columns}


def _unspilled(size: int) -> dict[str, int]:
    """Change the tiles of both gradients with two sums each, which have no registers for heads of 128."""
    return {"ROWS": _ROWS // 2, "num_warps": 8} if size > 64 else {}
