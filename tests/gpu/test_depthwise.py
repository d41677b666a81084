"""The depthwise kernel against torch's operator in float64, at the family's shapes and at ragged ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("shape", [(5, 56, 56, 768), (3, 28, 28, 1536), (2, 14, 14, 96), (2, 7, 9, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    from coatnet.model.blocks import convolve

    generator = torch.Generator("cuda").manual_seed(shape[1])
    x = torch.randn(shape, device="cuda", dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(shape[3], 1, 3, 3, device="cuda", generator=generator, requires_grad=True)
    down = torch.randn(shape, device="cuda", dtype=dtype, generator=generator)
    y = convolve(x, weight, bias=None, stride=1, padding="same")
    again = convolve(x, weight, bias=None, stride=1, padding="same")
    assert y.dtype == dtype
    found = [y, *torch.autograd.grad(y, (x, weight), down)]
    exact_x, exact_weight = (one.detach().double().requires_grad_() for one in (x, weight))
    exact_y = F.conv2d(exact_x.permute(0, 3, 1, 2), exact_weight, padding=1, groups=shape[3])
    exact_y = exact_y.permute(0, 2, 3, 1)
    exact = [exact_y, *torch.autograd.grad(exact_y, (exact_x, exact_weight), down.double())]
    rounding = 1e-6 if dtype == torch.float32 else 5e-3
    for one, other, limit in zip(found, exact, (rounding, rounding, 1e-6), strict=True):
        assert float((one.double() - other).norm() / other.norm()) < limit
    assert torch.equal(torch.autograd.grad(again, weight, down)[0], found[2])
