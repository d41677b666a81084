"""The mistakes that other ports made, made here on purpose: each must be caught by a golden check.

The network's three modules are loaded anew from their source with one line changed.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from coatnet.model.config import ModelConfig

GRID, WIDTH_IN, WIDTH, HEAD_SIZE = 3, 8, 16, 8
MODULES = ("attention", "blocks", "network")


def load(monkeypatch: pytest.MonkeyPatch, mutation: tuple[str, str, str] | None = None) -> dict[str, Any]:
    """Load attention, blocks and network from source, one of them with a line replaced."""
    fresh: dict[str, Any] = {}
    for short in MODULES:
        name = f"coatnet.model.{short}"
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        with open(spec.origin, encoding="utf-8") as file:
            source = file.read()
        if mutation is not None and mutation[0] == short:
            assert source.count(mutation[1]) == 1, f"{short} no longer holds {mutation[1]!r} once"
            source = source.replace(mutation[1], mutation[2])
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, spec.origin, "exec"), vars(module))  # noqa: S102
        fresh[short] = module
    return fresh


# name: (module, the line as it is, the line as others had it)
MUTATIONS = {
    "row stride W in the relative index": (
        "attention",
        "row_offset[:, None, :, None] * (2 * width - 1)",
        "row_offset[:, None, :, None] * width",
    ),
    "no 1/sqrt(d)": ("attention", "(q * q.shape[-1] ** -0.5) @", "q @"),
    "bias gathered once, without gradient": (
        "attention",
        "            return self._bias(height, width)\n",
        "            return self._bias(height, width).detach()\n",
    ),
    "squeeze width from the hidden width": (
        "blocks",
        "squeeze=max(1, int(width * SE_RATIO))",
        "squeeze=max(1, int(hidden * SE_RATIO))",
    ),
    "squeeze width from the input": (
        "blocks",
        "squeeze=max(1, int(width * SE_RATIO))",
        "squeeze=max(1, int(width_in * SE_RATIO))",
    ),
    "expansion of the input width": (
        "blocks",
        "hidden = EXPANSION * width\n",
        "hidden = EXPANSION * width_in\n",
    ),
    "eight heads whatever the width": ("attention", "width // head_size, head_size", "8, width // 8"),
}


def check_counts(modules: dict[str, Any]) -> None:
    model = modules["network"].build_model(ModelConfig(), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_036_948


def check_attention(modules: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = (
        modules["attention"]
        .RelativeAttention(WIDTH_IN, WIDTH, head_size=HEAD_SIZE, grid=GRID, relative=True)
        .double()
    )
    torch.nn.init.normal_(module.bias.table)
    x = torch.randn(2, GRID, GRID, WIDTH_IN, dtype=torch.float64)
    assert torch.allclose(module(x), reference(module, x), atol=1e-12)


def check_bias_gradient(modules: dict[str, Any]) -> None:
    torch.manual_seed(0)
    bias = modules["attention"].RelativeBias(2, grid=GRID)
    torch.nn.init.normal_(bias.table)
    bias(GRID, GRID).sum().backward()
    # An offset occurs as often as two rows (columns) that far apart exist.
    times = torch.tensor([float(GRID - abs(offset)) for offset in range(1 - GRID, GRID)])
    assert torch.equal(bias.table.grad, (times[:, None] * times[None, :]).expand_as(bias.table))


def reference(module: Any, x: Tensor) -> Tensor:
    """Equation 3 by loops, head by head and pair by pair, in float64."""
    batch, side = x.shape[0], x.shape[1]
    tokens = x.reshape(batch, side * side, -1)
    q, k, v = (linear(tokens) for linear in (module.query, module.key, module.value))
    mixed = torch.zeros(batch, side * side, WIDTH, dtype=torch.float64)
    for head in range(WIDTH // HEAD_SIZE):
        part = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        for i in range(side * side):
            scores = []
            for j in range(side * side):
                row, column = i // side - j // side, i % side - j % side
                w = module.bias.table[head, row + side - 1, column + side - 1]
                scores.append((q[:, i, part] * k[:, j, part]).sum(-1) / math.sqrt(HEAD_SIZE) + w)
            weights = torch.stack(scores, dim=-1).softmax(dim=-1)
            mixed[:, i, part] = (weights[:, :, None] * v[:, :, part]).sum(1)
    return module.out(mixed).reshape(batch, side, side, WIDTH)


CHECKS: tuple[Callable[[dict[str, Any]], None], ...] = (check_counts, check_attention, check_bias_gradient)


@pytest.mark.parametrize("check", CHECKS)
def test_the_network_as_it_is_passes(monkeypatch: pytest.MonkeyPatch, check: Callable[..., None]) -> None:
    check(load(monkeypatch))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_known_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    modules = load(monkeypatch, MUTATIONS[name])
    caught = []
    for check in CHECKS:
        try:
            check(modules)
        except (AssertionError, RuntimeError) as error:
            caught.append(f"{check.__name__}: {error}")
    assert caught, f"no golden check notices: {name}"
