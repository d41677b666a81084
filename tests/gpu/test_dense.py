"""The stem's convolution on a GPU: close to float64, and the same bits when repeated."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("channels", "stride"), [(3, 2), (64, 1)])
def test_gradients_are_those_of_float64_and_the_same_every_time(channels: int, stride: int) -> None:
    from coatnet.model.blocks import convolve

    x = torch.randn(8, 56, 56, channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(64, channels, 3, 3, device="cuda", requires_grad=True)

    def gradients(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            y = convolve(x, weight, bias=None, stride=stride, padding="same")
        return torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    found, again = gradients(x, weight), gradients(x, weight)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    exact = gradients(*(one.detach().double().requires_grad_() for one in (x, weight)))
    for one, other in zip(found, exact, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 1e-2
