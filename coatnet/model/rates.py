"""What this machine's cores attain in the network's operations, each by itself: a second of measuring.

    python -m coatnet.model.rates        prints JSON

Times forward and backward passes of single operations, never of a block or a network, so that a plan made
from them still has something to predict. Knows no plan: `cluster.planning.calibration` reads the times.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.model.attention import plain_attention
from coatnet.model.blocks import Conv
from coatnet.model.norm import GroupBatchNorm

_BATCH = 8
_GROUP_IMAGES = 2
_HEAD_SIZE = 32
_CHAIN = 16  # small operations in a row, so that starting a backward pass is no part of one's time
# Torch's operators of every kind's call, forward and backward, a view being less than one.
_CALLS = {"product": 7.0, "norm": 85.0, "depthwise": 3.2, "attention": 19.8, "launch": 5.8 * _CHAIN}
_HEAP_BLOCK = 31 << 18  # elements of 31 MiB; glibc keeps blocks below 32
_COPIED_ELEMENTS = 1 << 23
_LEAST_ROUNDS = 3
# (side, width in, width): expansions and projections, from many rows and few channels to few rows and many.
_PRODUCTS = ((24, 64, 256), (24, 256, 64), (12, 128, 512), (12, 512, 128), (6, 384, 1536))
_MAP = 24, 256  # side and width of the hidden map that is normalised, activated and convolved
_ATTENTION = 6, 384
Probe = tuple[dict[str, Any], Callable[[], object]]


@dataclass(frozen=True)
class Rate:
    """How long one operation takes, forward and backward.

    Args:
        kind: product, depthwise, norm (with its GELU), attention, copy or launch (of hardly any work).
        elements: of the output, per call; of a copy what is copied.
        macs: multiply-adds of the forward pass.
        seconds: of forward and backward together.
        calls: torch's operators in that, as `cluster.planning.operators` counts them.
    """

    kind: str
    elements: int
    macs: int
    seconds: float
    calls: float


def measure_rates(*, seconds: float = 1.0, clock: Callable[[], float] = time.process_time) -> list[Rate]:
    """Time every operation in turn until the time is over, at least three times, and return the means.

    Args:
        seconds: on the wall; one round takes about a tenth of a second.
        clock: the process's own time by default, which other work lengthens less than that on the wall.
    """
    _grow_heap()
    probes = _probes()
    for _, call in probes:
        call()  # warm: threads, workspaces, pages
    times: list[list[float]] = [[] for _ in probes]
    began = time.monotonic()
    while len(times[0]) < _LEAST_ROUNDS or time.monotonic() - began < seconds:
        for (_, call), found in zip(probes, times, strict=True):
            start = clock()
            call()
            found.append(clock() - start)
    return [
        Rate(**shape, seconds=statistics.fmean(found))
        for (shape, _), found in zip(probes, times, strict=True)
    ]


def _grow_heap() -> None:
    """Let the C library keep what is freed, as it does in a training that has freed a large tensor.

    In a young process it gives large blocks back, and each call pays for fresh pages: twice the time of a
    depthwise convolution, a third more of a product with many rows.
    """
    for _ in range(2):
        torch.ones(_HEAP_BLOCK)


def _probes() -> list[Probe]:
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    side, width = _MAP
    norm = GroupBatchNorm(width, group_images=_GROUP_IMAGES, momentum=0.1, eps=1e-3)
    depthwise = Conv(width, width, stride=1, padding="same", bias=False, depthwise=True)
    nn.init.normal_(depthwise.weight, generator=generator)
    wide = draw(_BATCH, side, side, width)
    elements, taps = wide.numel(), 9
    found = [_product(draw, *shape) for shape in _PRODUCTS]
    found.append(_probe("norm", partial(norm, gelu=True), wide, elements=elements))
    found.append(_probe("depthwise", depthwise, wide, elements=elements, macs=taps * elements))
    found += [_attention(draw), _launch(draw), _copy()]
    return found


def _product(draw: Callable[..., Tensor], side: int, width_in: int, width: int) -> Probe:
    rows = _BATCH * side * side
    x = draw(_BATCH, side, side, width_in)
    macs = rows * width_in * width
    return _probe("product", nn.Linear(width_in, width), x, elements=rows * width, macs=macs)


def _attention(draw: Callable[..., Tensor]) -> Probe:
    side, width = _ATTENTION
    tokens, heads = side * side, width // _HEAD_SIZE
    q, k, v = (draw(_BATCH, heads, tokens, _HEAD_SIZE) for _ in range(3))
    bias = draw(heads, tokens, tokens)
    elements = _BATCH * tokens * width
    return _probe("attention", plain_attention, q, k, v, bias, elements=elements, macs=2 * tokens * elements)


def _launch(draw: Callable[..., Tensor]) -> Probe:
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(_CHAIN)))
    return _probe("launch", layers, draw(1, 8), elements=_CHAIN * 8)


def _copy() -> Probe:
    source = torch.ones(_COPIED_ELEMENTS)
    target = torch.empty_like(source)
    shape = {"kind": "copy", "elements": _COPIED_ELEMENTS, "macs": 0, "calls": 1.0}
    return shape, lambda: target.copy_(source)


def _probe(kind: str, forward: Callable[..., Tensor], *inputs: Tensor, elements: int, macs: int = 0) -> Probe:
    """Pair a shape with a call that goes forward and takes the gradients of inputs and weights."""
    module = getattr(forward, "func", forward)
    weights = list(module.parameters()) if isinstance(module, nn.Module) else []
    learning = [*(one.requires_grad_() for one in inputs), *weights]
    down = torch.ones_like(forward(*inputs))
    shape = {"kind": kind, "elements": elements, "macs": macs, "calls": _CALLS[kind]}
    return shape, lambda: torch.autograd.grad(forward(*inputs), learning, down)


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump([asdict(rate) for rate in measure_rates()], sys.stdout)
