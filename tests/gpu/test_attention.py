"""Attention on a GPU: no NaN where cuDNN has them, and no fp32 mask read as bf16."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("tokens", [49, 64, 196, 576, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_agrees_with_the_plain_path_and_has_no_nan(tokens: int, dtype: torch.dtype) -> None:
    from coatnet.model.attention import fused_attention, plain_attention

    generator = torch.Generator("cuda").manual_seed(tokens)
    q, k, v = (
        torch.randn(2, 4, tokens, 32, device="cuda", dtype=dtype, generator=generator, requires_grad=True)
        for _ in range(3)
    )
    # Very negative biases make the logsumexp with which cuDNN's backward pass goes wrong.
    bias = torch.randn(4, tokens, tokens, device="cuda", generator=generator).mul(30).sub(60).requires_grad_()
    reference = plain_attention(*(tensor.double() for tensor in (q, k, v, bias)))
    fused = fused_attention(q, k, v, bias)
    tolerance = 1e-4 if dtype == torch.float32 else 0.15  # a bf16 bias of -60 has steps of 0.25
    assert torch.allclose(fused.double(), reference, atol=tolerance)
    for gradient in torch.autograd.grad(fused.float().square().sum(), (q, k, v, bias)):
        assert bool(gradient.isfinite().all())
