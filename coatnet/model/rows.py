"""Batch norm and GELU on a CPU by the C extension `_rows`; the only module that imports it.

torch's own operators are one pass over memory each, with a tanh that costs more than the rest together; the
extension normalises and activates in one pass and keeps only the input for the backward pass. Traced graphs,
other devices and other types take the plain operators: `norm` and `blocks` ask `fits` first.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from coatnet.model.gpu import HAS_TRITON

_native: ModuleType | None
try:
    import coatnet.model._rows as _native
except ImportError:
    _native = None


def name(*, device_type: str) -> str:
    """Say whose kernels run there, "rows", "triton" or "torch": the last digits of a run depend on it."""
    if device_type == "cuda":
        return "triton" if HAS_TRITON else "torch"
    return "rows" if _native is not None else "torch"


def fits(x: Tensor) -> bool:
    """Say whether the extension was built and can work on this tensor."""
    return (
        _native is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
    )


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each of `groups` equal parts of the batch by its own statistics, then apply GELU if asked.

    Shape: x (B, H, W, C), weight and bias (C,) → y like x; means and unbiased variances (groups, C), without
        gradients.
    """
    return _Normalise.apply(x, weight, bias, groups, eps, gelu)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as x / (1 + e^−2u)."""
    return _Gelu.apply(x)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, gelu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert _native is not None
        x, bias = x.contiguous(), bias.contiguous()
        width, threads = x.shape[-1], torch.get_num_threads()
        rows = x.numel() // (groups * width)
        y = torch.empty_like(x)
        means, variances = x.new_empty(groups, width), x.new_empty(groups, width)
        for part, out, mean, variance in zip(x.chunk(groups), y.chunk(groups), means, variances, strict=True):
            _native.moments(part.data_ptr(), rows, width, mean.data_ptr(), variance.data_ptr(), threads)
            scale = weight * torch.rsqrt(variance + eps)
            _native.normalise(
                part.data_ptr(), out.data_ptr(), rows, width, mean.data_ptr(), scale.data_ptr(),
                bias.data_ptr(), gelu, threads,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, means, variances)
        ctx.eps, ctx.gelu = eps, gelu
        unbiased = variances * (rows / max(1, rows - 1))
        ctx.mark_non_differentiable(means, unbiased)
        return y, means, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        assert _native is not None
        x, weight, bias, means, variances = ctx.saved_tensors
        dy = gradients[0].contiguous()
        groups, width = means.shape
        rows, threads = x.numel() // (groups * width), torch.get_num_threads()
        dx = torch.empty_like(x)
        weight_gradient, bias_gradient = torch.zeros_like(weight), torch.zeros_like(bias)
        sums = x.new_empty(2, width)
        for part, down, out, mean, variance in zip(
            x.chunk(groups), dy.chunk(groups), dx.chunk(groups), means, variances, strict=True
        ):
            inverse = torch.rsqrt(variance + ctx.eps)
            scale = weight * inverse
            _native.gradient_sums(
                part.data_ptr(), down.data_ptr(), out.data_ptr() if ctx.gelu else 0, rows, width,
                mean.data_ptr(), scale.data_ptr(), bias.data_ptr(), ctx.gelu, sums[0].data_ptr(),
                sums[1].data_ptr(), threads,
            )  # fmt: skip
            weight_gradient += sums[1] * inverse
            bias_gradient += sums[0]
            slope = scale * inverse.square() * sums[1] / -rows
            offset = scale * sums[0] / -rows
            normal = out if ctx.gelu else down  # the gradient at the norm's output
            _native.gradient(
                part.data_ptr(), normal.data_ptr(), out.data_ptr(), rows, width, mean.data_ptr(),
                scale.data_ptr(), slope.data_ptr(), offset.data_ptr(), threads,
            )  # fmt: skip
        return dx, weight_gradient, bias_gradient, None, None, None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert _native is not None
        x = x.contiguous()
        y = torch.empty_like(x)
        _native.gelu(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        assert _native is not None
        (x,) = ctx.saved_tensors
        dy = gradients[0].contiguous()
        dx = torch.empty_like(x)
        _native.gelu_gradient(x.data_ptr(), dy.data_ptr(), dx.data_ptr(), x.numel(), torch.get_num_threads())
        return dx
