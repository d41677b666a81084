"""GELU's tanh form and its slope for Triton's kernels."""

from __future__ import annotations

import math

import triton
import triton.language as tl

_CUBIC = tl.constexpr(0.044715)
_SLOPE = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi))
_POWER = tl.constexpr(-2.0 * math.sqrt(2.0 / math.pi) * math.log2(math.e))  # to e^−2u as a power of two


@triton.jit
def sigmoid(n):
    """Return σ(2u); GELU is n times that. A root's square takes three instructions, a quotient six."""
    root = tl.rsqrt(1.0 + tl.exp2(n * (_POWER + _POWER * _CUBIC * n * n)))
    return root * root


@triton.jit
def slope(n, sigma):
    """Return GELU's derivative, given `sigmoid` of the same."""
    return sigma + n * sigma * (1.0 - sigma) * (_SLOPE + 3.0 * _SLOPE * _CUBIC * n * n)
