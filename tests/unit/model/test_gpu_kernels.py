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
    for batch, tokens, heads, size in ((1, 49, 2, 32), (5, 9, 2, 16), (1, 70, 1, 64)):
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


if __name__ == "__main__":
    torch.manual_seed(0)
    check_depthwise()
    check_attention()
