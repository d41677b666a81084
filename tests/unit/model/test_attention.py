"""Relative attention: the table at other resolutions, its gradient, its cache, bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from coatnet.model.attention import RelativeAttention, RelativeBias, fused_attention, plain_attention

HEADS, GRID = 3, 5


def make_bias(*, grid: int = GRID) -> RelativeBias:
    bias = RelativeBias(HEADS, grid=grid)
    nn.init.normal_(bias.table, generator=torch.Generator().manual_seed(0))
    return bias


def resized_table(table: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with half-pixel centres and clamped edges, element by element in float64."""
    source = table.double()
    target = torch.empty(table.shape[0], 2 * height - 1, 2 * width - 1, dtype=torch.float64)

    def taps(position: int, size: int, old: int) -> tuple[int, int, float]:
        centre = max((position + 0.5) * old / size - 0.5, 0.0)
        low = min(int(centre), old - 1)
        return low, min(low + 1, old - 1), centre - low

    for row in range(target.shape[1]):
        top, bottom, down = taps(row, target.shape[1], source.shape[1])
        for column in range(target.shape[2]):
            left, right, across = taps(column, target.shape[2], source.shape[2])
            upper = source[:, top, left] * (1 - across) + source[:, top, right] * across
            lower = source[:, bottom, left] * (1 - across) + source[:, bottom, right] * across
            target[:, row, column] = upper * (1 - down) + lower * down
    return target


def looked_up(table: Tensor, height: int, width: int) -> Tensor:
    """Equation 3's w, pair by pair: P[i − i′ + H − 1, j − j′ + W − 1]."""
    positions = [(i, j) for i in range(height) for j in range(width)]
    return torch.stack(
        [
            torch.stack([table[:, i - k + height - 1, j - m + width - 1] for k, m in positions], dim=-1)
            for i, j in positions
        ],
        dim=1,
    )


@pytest.mark.parametrize(("height", "width"), [(5, 5), (7, 7), (3, 3), (4, 6), (12, 5)])
def test_the_bias_at_any_grid_is_the_float64_reference(height: int, width: int) -> None:
    bias = make_bias()
    expected = looked_up(resized_table(bias.table.detach(), height, width), height, width)
    assert (bias(height, width).double() - expected).abs().max() < 2e-6


def test_gradients_at_another_resolution_reach_the_stored_table() -> None:
    bias = make_bias()
    weights = torch.randn(HEADS, 49, 49, generator=torch.Generator().manual_seed(1))
    (bias(7, 7) * weights).sum().backward()
    table = bias.table.detach().double().requires_grad_()
    (looked_up(resized(table, 7), 7, 7) * weights).sum().backward()
    assert bias.table.grad is not None and table.grad is not None
    assert bias.table.grad.count_nonzero() == bias.table.numel()
    assert torch.allclose(bias.table.grad.double(), table.grad, atol=1e-4)


def resized(table: Tensor, side: int) -> Tensor:
    """The same as `resized_table` by a matrix whose columns it makes, so that gradients flow."""
    old = table.shape[-1]
    unit = torch.eye(old * old, dtype=torch.float64).view(-1, old, old)
    matrix = resized_table(unit, side, side).flatten(1)
    return (table.flatten(1) @ matrix).view(table.shape[0], 2 * side - 1, 2 * side - 1)


def test_evaluation_keeps_the_bias_until_table_or_grid_change() -> None:
    bias = make_bias().eval()
    with torch.no_grad():
        first = bias(7, 7)
        assert bias(7, 7) is first
        assert bias(5, 5) is not first
        again = bias(7, 7)
        bias.table += 1.0
        assert torch.allclose(bias(7, 7), again + 1.0, atol=1e-6)
    assert bias(7, 7).requires_grad, "with gradients nothing is kept"


def test_there_and_back_gives_the_stored_table_again() -> None:
    """224 → 384 → 224 px: at 384 the bias is another, back at 224 it is the old one to the bit."""
    bias = make_bias(grid=14).eval()
    with torch.no_grad():
        before = bias(14, 14).clone()
        larger = bias(24, 24)
        assert larger.shape == (HEADS, 576, 576)
        assert not torch.equal(larger[:, :196, :196], before)
        assert torch.equal(bias(14, 14), before)
        assert bias.table.shape == (HEADS, 27, 27)


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
