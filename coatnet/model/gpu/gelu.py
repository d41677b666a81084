"""GELU's tanh form, by what is quickest where it runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_TWICE_ROOT = 2.0 * math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


def gelu(x: Tensor) -> Tensor:
    """Return 0.5·x·(1 + tanh u) = x·σ(2u), u = √(2/π)·(x + 0.044715·x³).

    In a compiled graph for a GPU the second form: an exponential and a division, where inductor's tanh takes
    so many instructions, forwards and again backwards, that they and not the memory set the time.
    """
    if not (torch.compiler.is_compiling() and x.is_cuda):
        return F.gelu(x, approximate="tanh")
    wide = x.float()
    return (wide * torch.sigmoid(_TWICE_ROOT * (wide + _CUBIC * wide * wide * wide))).to(x.dtype)


def gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of `gelu`: σ(2u) + x·σ·(1 − σ)·2u′."""
    sigma = torch.sigmoid(_TWICE_ROOT * (x + _CUBIC * x * x * x))
    return sigma + x * sigma * (1.0 - sigma) * _TWICE_ROOT * (1.0 + 3.0 * _CUBIC * x * x)
