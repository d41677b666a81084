"""The stem's convolution by products gives what torch's gives, in float64."""

from __future__ import annotations

import pytest
import torch

from coatnet.model.blocks import convolve
from coatnet.model.gpu import dense


@pytest.mark.parametrize(
    ("height", "width", "channels", "stride", "padding", "bias"),
    [
        (8, 12, 3, 2, "same", True),
        (8, 12, 3, 2, "symmetric", False),
        (6, 10, 5, 1, "same", True),
        (7, 5, 4, 1, "symmetric", False),
    ],
)
def test_output_and_gradients_are_those_of_torchs_operator(
    height: int, width: int, channels: int, stride: int, padding: str, bias: bool
) -> None:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(2, height, width, channels, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(6, channels, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    shift = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True) if bias else None
    leaves = [one for one in (x, weight, shift) if one is not None]
    expected = convolve(x, weight, bias=shift, stride=stride, padding=padding)
    found = dense.convolve(x, weight, shift, stride=stride, padding=padding)
    down = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    assert torch.equal(found, expected)
    gradients = (torch.autograd.grad(y, leaves, down) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.slow
def test_it_compiles_without_a_graph_break() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)

    def strided(x: torch.Tensor) -> torch.Tensor:
        return dense.convolve(x, weight, None, stride=2, padding="same")

    x = torch.randn(1, 8, 8, 3)
    torch.compile(strided, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert weight.grad is not None
    expected = convolve(x, weight, bias=None, stride=2, padding="same").sum()
    assert torch.allclose(weight.grad, torch.autograd.grad(expected, weight)[0], atol=1e-5)
