"""Max pooling in the form that compiles well: torch's bits, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from coatnet.model.pooling import FusibleMaxPool, max_pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fusible_pooling_has_the_bits_of_torchs_also_where_values_are_equal(dtype: torch.dtype) -> None:
    # Few different values, so that most squares hold their maximum more than once.
    x = torch.randint(-2, 3, (3, 8, 6, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    grad = torch.randn(3, 4, 3, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y = FusibleMaxPool.apply(ours)
    expected = F.max_pool2d(theirs.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(y, expected)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.slow
def test_a_compiled_pooling_takes_the_fusible_form_where_a_gradient_is_wanted() -> None:
    graphs: list[str] = []

    def look(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    torch.compiler.reset()
    pooled = torch.compile(max_pool, backend=look)
    x = torch.randn(1, 4, 4, 2)
    assert torch.equal(pooled(x.clone().requires_grad_()), pooled(x))
    torch.compiler.reset()
    assert ["max_pool2d" in graph for graph in graphs] == [False, True]
