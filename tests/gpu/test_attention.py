"""Attention on a GPU: our kernels and torch's give float64's numbers, and none gives NaN where cuDNN does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOKENS = [49, 64, 196, 576, 1024]


def leaves(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(tokens)
    q, k, v = (
        torch.randn(2, tokens, 4, 32, device="cuda", dtype=dtype, generator=generator, requires_grad=True)
        for _ in range(3)
    )
    # Very negative biases make the logsumexp with which cuDNN's backward pass goes wrong.
    bias = torch.randn(4, tokens, tokens, device="cuda", generator=generator).mul(30).sub(60).requires_grad_()
    return q, k, v, bias


def exact_outputs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, down: Tensor) -> list[Tensor]:
    from coatnet.model.attention import plain_attention

    exact = [one.detach().double().requires_grad_() for one in (q, k, v, bias)]
    y = plain_attention(*(one.transpose(1, 2) for one in exact[:3]), exact[3]).transpose(1, 2)
    return [y.detach(), *torch.autograd.grad(y, exact, down.double())]


def assert_close(found: list[Tensor], exact: list[Tensor], *, limit: float) -> None:
    for one, other in zip(found, exact, strict=True):
        assert float((one.detach().double() - other).norm() / other.norm()) < limit


@pytest.mark.parametrize("tokens", TOKENS)
def test_our_kernels_agree_with_float64_with_a_bias_in_fp32(tokens: int) -> None:
    from coatnet.model.gpu.attention import attention

    q, k, v, bias = leaves(tokens, torch.bfloat16)
    y, _ = attention(q, k, v, bias)
    down = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, (q, k, v, bias), down)]
    assert_close(found, exact_outputs(q, k, v, bias, down), limit=1e-2)
    again, _ = attention(q, k, v, bias)
    assert torch.equal(torch.autograd.grad(again, bias, down)[0], found[4])


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_kernel_of_torch_agrees_with_float64(tokens: int, dtype: torch.dtype) -> None:
    from coatnet.model.attention import fused_attention

    q, k, v, bias = leaves(tokens, dtype)
    y = fused_attention(*(one.transpose(1, 2) for one in (q, k, v)), bias).transpose(1, 2)
    down = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, (q, k, v, bias), down)]
    # Its mask has the type of q.
    exact = exact_outputs(q, k, v, bias.to(dtype), down)
    assert_close(found, exact, limit=1e-5 if dtype == torch.float32 else 2e-2)


def test_the_gradient_of_a_resized_bias_has_the_same_bits_every_time_without_any_switch() -> None:
    from coatnet.model.attention import RelativeBias

    bias = RelativeBias(16, grid=14).cuda()
    torch.nn.init.normal_(bias.table)
    down = torch.randn_like(bias(24, 24))
    first, *others = (torch.autograd.grad(bias(24, 24), bias.table, down)[0] for _ in range(20))
    assert all(torch.equal(first, other) for other in others)
