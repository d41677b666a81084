"""The fused middle of MBConv on a card: float64's numbers at the family's shapes, the same bits each time."""

from __future__ import annotations

import copy

import pytest
import torch

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("shape", [(4, 56, 56, 768), (3, 28, 28, 1536), (2, 22, 18, 384), (2, 7, 9, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_moments_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    from coatnet.model.gpu.mbconv import activate_convolve

    generator = torch.Generator("cuda").manual_seed(shape[1])
    width = shape[3]

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device="cuda", generator=generator)

    leaves = [draw(*shape).to(dtype), draw(1, width), draw(1, width), draw(width), draw(width, 1, 3, 3)]
    leaves = [one.requires_grad_() for one in leaves]
    y, mean, variance = activate_convolve(*leaves)
    downs = [torch.randn_like(y), 100 * torch.randn_like(mean), 100 * torch.randn_like(mean)]
    found = [y, mean, variance, *torch.autograd.grad((y, mean, variance), leaves, downs)]
    again = activate_convolve(*leaves)
    repeated = [*again, *torch.autograd.grad(again, leaves, downs)]
    assert all(torch.equal(one, other) for one, other in zip(found, repeated, strict=True))

    exact_leaves = [one.detach().double().requires_grad_() for one in leaves]
    e, centre, scale, bias, weight = exact_leaves
    active = torch.nn.functional.gelu((e - centre[0]) * scale[0] + bias, approximate="tanh")
    y = torch.nn.functional.conv2d(active.permute(0, 3, 1, 2), weight, padding=1, groups=width)
    variance, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
    exact = [y.permute(0, 2, 3, 1), mean[None], variance[None]]
    exact += torch.autograd.grad(exact, exact_leaves, [one.double() for one in downs])
    for one, other in zip(found, exact, strict=True):
        error = float((one.double() - other).norm() / other.norm())
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_compiled_block_computes_with_them_what_it_computes_without() -> None:
    config = ModelConfig(depths=[1] * 5, widths=[32, 32, 64, 64, 64], image_size=128, num_classes=5)
    plain = build_model(config, device="cuda", seed=0).train().stages["S2"][0]
    fused = copy.deepcopy(plain)
    fused.fuse()
    fused.compile(fullgraph=True, dynamic=False)
    x = torch.randn(8, 32, 32, 32, device="cuda")
    gradients = []
    for block in (plain, fused):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            block(x, None).square().mean().backward()
        gradients.append(torch.cat([one.grad.flatten() for one in block.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 2e-2
