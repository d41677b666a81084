"""Relative attention in bf16: as exact as its inputs allow, the softmax in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coatnet.model.attention import RelativeAttention, fused_attention, plain_attention


@pytest.mark.parametrize("tokens_side", [8, 24])
def test_bfloat16_attention_has_its_softmax_in_float32(tokens_side: int) -> None:
    """At N = 64 and 576, where cuDNN's kernel fails: finite, and as exact as bf16 inputs allow."""
    generator = torch.Generator().manual_seed(0)
    tokens = tokens_side**2
    q, k, v = (torch.randn(1, 2, tokens, 32, generator=generator).bfloat16() for _ in range(3))
    bias = torch.randn(2, tokens, tokens, generator=generator)
    expected = plain_attention(q.double(), k.double(), v.double(), bias.double())
    for attention in (plain_attention, fused_attention):
        result = attention(q, k, v, bias)
        assert result.dtype == torch.bfloat16 and result.isfinite().all()
        assert (result.double() - expected).abs().max() < 0.03


def test_the_softmax_sees_float32_scores_under_autocast() -> None:
    """Scores near 200 differ by less than bf16 resolves; a bf16 softmax would call them equal."""
    module = RelativeAttention(16, 16, head_size=16, grid=2, relative=True).eval()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    module.out.weight.data = torch.eye(16)
    module.value.weight.data = torch.eye(16)
    assert module.bias is not None
    module.bias.table.data += 200.0
    module.bias.table.data[0, 1, 1] += 0.4  # a position's own score; bf16 has steps of 1 there
    x = torch.eye(16)[None, :4].view(1, 2, 2, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        weights = module(x).float().view(4, 16)[:, :4]
    own = torch.tensor([0.0, 0.0, 0.0, 0.4]).softmax(0)[3]
    assert torch.allclose(weights.diagonal(), own.expand(4), atol=4e-3)
