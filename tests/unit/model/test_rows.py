"""The CPU's kernel for batch norm and GELU: float64's numbers, gradients too, the same with any threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from coatnet.model import rows
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import build_model

EPS = 1e-3
pytestmark = pytest.mark.skipif(
    not rows.fits(torch.zeros(1)),
    reason="the extension coatnet.model._rows is not built (needs a C compiler)",
)


def inputs(*, width: int, images: int = 4, side: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x with a mean far from zero, weight, bias and a gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, side, side, width, generator=generator) * 3 + 20
    weight, bias = torch.randn(2, width, generator=generator)
    return x, weight, bias, torch.randn(x.shape, generator=generator)


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, gelu: bool) -> Tensor:
    parts = [
        F.batch_norm(part.permute(0, 3, 1, 2), None, None, weight, bias, True, 1.0, EPS).permute(0, 2, 3, 1)
        for part in x.chunk(groups)
    ]
    y = torch.cat(parts)
    return F.gelu(y, approximate="tanh") if gelu else y


def run(x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, *, groups: int, gelu: bool) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    y, means, variances = rows.normalise(*leaves, groups=groups, eps=EPS, gelu=gelu)
    return [y.detach(), means, variances, *torch.autograd.grad(y, leaves, down)]


@pytest.mark.parametrize("width", [1, 7, 24, 384])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("gelu", [False, True])
def test_norm_and_its_gradients_are_float64s(width: int, groups: int, gelu: bool) -> None:
    x, weight, bias, down = inputs(width=width, side=13)
    y, means, variances, *gradients = run(x, weight, bias, down, groups=groups, gelu=gelu)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    expected = reference(*exact, groups=groups, gelu=gelu)
    assert torch.allclose(y.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, exact, down.double()), strict=True):
        assert torch.allclose(ours.double(), theirs, atol=1e-4, rtol=1e-5)
    for part, mean, variance in zip(x.double().chunk(groups), means, variances, strict=True):
        assert torch.allclose(mean.double(), part.mean((0, 1, 2)), rtol=1e-6)
        assert torch.allclose(variance.double(), part.var((0, 1, 2)), rtol=1e-5)


def test_gelu_is_float64s_over_the_whole_range_and_never_nan() -> None:
    x = torch.cat([torch.linspace(-12, 12, 20_001), torch.tensor([-1e30, -200.0, 0.0, 200.0, 1e30])])
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = rows.gelu(leaf), F.gelu(exact, approximate="tanh")
    assert torch.allclose(y.double(), expected, atol=1e-6, rtol=1e-6)
    (ours,) = torch.autograd.grad(y.sum(), leaf)
    (theirs,) = torch.autograd.grad(expected[:-5].sum(), exact)
    assert torch.allclose(ours[:-5].double(), theirs[:-5], atol=2e-6)
    assert torch.allclose(ours[-5:], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-6)


def test_a_nan_stays_a_nan() -> None:
    assert rows.gelu(torch.tensor([float("nan"), 1.0])).isnan().tolist() == [True, False]


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    threads = torch.get_num_threads()
    case = inputs(width=96, images=4, side=40)
    try:
        torch.set_num_threads(1)
        one = run(*case, groups=2, gelu=True)
        torch.set_num_threads(3)
        three = run(*case, groups=2, gelu=True)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_a_network_computes_the_same_with_and_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], image_size=64, num_classes=5, stochastic_depth=0.2
    )
    images, keys = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(4)

    def gradients() -> dict[str, Tensor]:
        model = build_model(config, norm=NormConfig(group_images=2), seed=0).train()
        model(images, sample_keys=keys).square().sum().backward()
        statistics = {name: buffer for name, buffer in model.named_buffers() if "running" in name}
        return {name: value.grad for name, value in model.named_parameters()} | statistics

    ours = gradients()
    monkeypatch.setattr(rows, "fits", lambda x: False)
    for name, value in gradients().items():
        assert torch.allclose(ours[name], value, rtol=1e-3, atol=1e-5), name
