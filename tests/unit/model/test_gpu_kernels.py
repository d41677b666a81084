"""The GPU's kernels on Triton's interpreter, against torch in float64; tests/gpu has them on a real card."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, of which there is no build here"),
]


def test_kernels_on_the_interpreter_give_the_numbers_of_float64() -> None:
    # A process of its own: Triton reads the variable once.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def check_depthwise() -> None:
    from coatnet.model.gpu import depthwise as module
    from coatnet.model.gpu.depthwise import depthwise

    module._IMAGES = 2
    for shape in ((3, 3, 7, 40), (1, 2, 9, 130)):
        x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape[3], 1, 3, 3, requires_grad=True)
        y, down = depthwise(x, weight), torch.randn(shape)
        found = [y, *torch.autograd.grad(y, (x, weight), down)]
        exact_x, exact_weight = (one.detach().double().requires_grad_() for one in (x, weight))
        exact_y = F.conv2d(exact_x.permute(0, 3, 1, 2), exact_weight, padding=1, groups=shape[3])
        exact_y = exact_y.permute(0, 2, 3, 1)
        exact = [exact_y, *torch.autograd.grad(exact_y, (exact_x, exact_weight), down.double())]
        errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
        assert max(errors) < 1e-6, (shape, errors)


def check_attention() -> None:
    from coatnet.model.attention import plain_attention
    from coatnet.model.gpu import attention as module
    from coatnet.model.gpu.attention import attention

    module._PROGRAMS = 4  # so that one program sums over several images
    for batch, tokens, heads, size in ((1, 49, 2, 32), (5, 9, 2, 16), (1, 70, 1, 64), (2, 40, 1, 128)):
        # fp16, because the interpreter takes no products of bf16
        shape = (batch, tokens, heads, size)
        leaves = [torch.randn(shape, dtype=torch.float16, requires_grad=True) for _ in range(3)]
        bias = torch.randn(heads, tokens, tokens).mul(3).requires_grad_()
        y, _ = attention(*leaves, bias)
        down = torch.randn_like(y)
        found = [y, *torch.autograd.grad(y, (*leaves, bias), down)]
        q, k, v, exact_bias = (one.detach().double().requires_grad_() for one in (*leaves, bias))
        exact_y = plain_attention(*(one.transpose(1, 2) for one in (q, k, v)), exact_bias).transpose(1, 2)
        exact = [exact_y, *torch.autograd.grad(exact_y, (q, k, v, exact_bias), down.double())]
        errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
        assert max(errors) < 1e-3, (shape, errors)


def check_fused_mbconv() -> None:
    from coatnet.model.gpu.mbconv import activate_convolve

    def plain(e: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> list[Tensor]:
        groups, width = mean.shape
        normal = (e.reshape(groups, -1, width) - mean[:, None]) * scale[:, None] + bias
        active = F.gelu(normal, approximate="tanh").view(e.shape).permute(0, 3, 1, 2)
        y = F.conv2d(active, weight, padding=1, groups=width).permute(0, 2, 3, 1)
        variance, centre = torch.var_mean(y.reshape(groups, -1, width), dim=1, correction=0)
        return [y, centre, variance]

    # A column of a second strip and channels of a second program; a group with an image over; one row.
    cases = (
        (1, (1, 2, 9, 130), torch.float32),
        (2, (6, 1, 5, 8), torch.float32),
        (1, (2, 3, 7, 8), torch.bfloat16),
    )
    for groups, shape, dtype in cases:
        width = shape[3]
        e = torch.randn(shape).to(dtype)
        leaves = [e, torch.randn(groups, width), torch.randn(groups, width), torch.randn(width) + 1]
        leaves = [one.requires_grad_() for one in (*leaves, torch.randn(width, 1, 3, 3))]
        found = list(activate_convolve(*leaves))
        assert found[0].dtype == dtype
        downs = [torch.randn_like(one) for one in found]
        downs[1:] = [100 * one for one in downs[1:]]  # or else they are lost among the elements' own
        found += torch.autograd.grad(found, leaves, downs)
        exact_leaves = [one.detach().double().requires_grad_() for one in leaves]
        exact = plain(*exact_leaves)
        exact += torch.autograd.grad(exact, exact_leaves, [one.double() for one in downs])
        errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
        assert max(errors) < (3e-6 if dtype == torch.float32 else 1e-2), (shape, errors)


def check_moments() -> None:
    from coatnet.model.gpu import moments as module

    module._ROWS = 8  # so that several programs share a group, the last with fewer rows than a turn
    x = (torch.randn(4, 3, 3, 300) + 30).requires_grad_()
    found = list(module.moments(x, 2))
    downs = [torch.randn_like(one) for one in found]
    found += torch.autograd.grad(found, x, downs)
    exact_x = x.detach().double().requires_grad_()
    exact = list(torch.var_mean(exact_x.view(2, -1, 300), dim=1, correction=0))[::-1]
    exact += torch.autograd.grad(exact, exact_x, [one.double() for one in downs])
    errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
    assert max(errors) < 3e-6, errors


def check_excite() -> None:
    from coatnet.model.gpu import excite as module
    from coatnet.model.gpu.excite import excite, squeeze

    module._PIXELS = 10  # so that several programs share an image
    shape = (2, 3, 5, 300)
    small = [torch.randn(2, 300), torch.randn(2, 300), torch.randn(300), torch.randn(2, 300)]
    leaves = [one.requires_grad_() for one in (torch.randn(shape), *small)]
    found = [squeeze(*leaves[:4]), excite(*leaves)]
    downs = [torch.randn_like(one) for one in found]
    found += torch.autograd.grad(found, leaves, downs)
    exact_leaves = [one.detach().double().requires_grad_() for one in leaves]
    y, mean, scale, bias, gate = exact_leaves
    active = F.gelu((y - mean[:, None, None]) * scale[:, None, None] + bias, approximate="tanh")
    exact = [active.mean(dim=(1, 2)), active * gate[:, None, None]]
    exact += torch.autograd.grad(exact, exact_leaves, [one.double() for one in downs])
    errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
    assert max(errors) < 2e-6, errors
    for once in (squeeze(*leaves[:4]), excite(*leaves)):
        (down,) = torch.autograd.grad(once.square().sum(), leaves[0], create_graph=True)
        try:  # its sums come from a kernel, and a gradient of the gradient would leave them out
            down.sum().backward()
        except RuntimeError as error:
            assert "once_differentiable" in str(error), error
        else:
            raise AssertionError("differentiated twice")


def check_fused_network() -> None:
    from coatnet.model.config import ModelConfig, NormConfig
    from coatnet.model.gpu import mbconv, moments
    from coatnet.model.network import build_model

    moments.fits, mbconv._IMAGES = lambda x: True, 1
    config = ModelConfig(
        depths=[1, 1, 1, 1, 1],
        widths=[8, 8, 8, 32, 32],
        image_size=32,
        num_classes=5,
        initialization="fan_in",
    )
    plain, fused = (build_model(config, norm=NormConfig(group_images=1), seed=0).train() for _ in range(2))
    fused.fuse_mbconv()
    images = torch.randn(2, 3, 32, 32)
    losses = [model(images).square().mean() for model in (plain, fused)]
    assert torch.allclose(losses[0], losses[1], rtol=1e-6), losses
    for loss in losses:
        loss.backward()
    norm = torch.stack([one.grad.norm() for one in plain.parameters()]).norm()
    for (name, one), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert float((one.grad - other.grad).norm()) < 1e-6 * float(norm), name
    for (name, one), other in zip(plain.named_buffers(), fused.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7), name


def check_compiled_block() -> None:
    from coatnet.model.config import ModelConfig
    from coatnet.model.network import build_model

    config = ModelConfig(depths=[1, 1, 2, 1, 1], widths=[8, 8, 8, 32, 32], image_size=32, num_classes=5)
    model = build_model(config, seed=0).train()
    model.fuse_mbconv()
    block = model.stages["S2"][1]
    x = torch.randn(3, 2, 2, 8, requires_grad=True)
    # Traced whole, without a graph break, and cut in two as for inductor, which would take a minute.
    compiled = torch.compile(block, backend="aot_eager_decomp_partition", fullgraph=True, dynamic=False)
    gradients = [torch.autograd.grad(run(x, None).square().sum(), x)[0] for run in (block, compiled)]
    assert relative_error(gradients[1], gradients[0]) < 1e-6
    saved: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        compiled(x.detach().bfloat16().requires_grad_(), None)
    maps = [one.dtype for one in saved if one.numel() == 3 * 2 * 2 * 32]
    # The expanded map, the convolved and the gated one: torch's operators keep the activated one too.
    assert maps == [torch.bfloat16] * 3, maps


if __name__ == "__main__":
    torch.manual_seed(0)
    check_depthwise()
    check_attention()
    check_fused_mbconv()
    check_moments()
    check_excite()
    check_fused_network()
    check_compiled_block()
