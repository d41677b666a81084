"""Stochastic depth whose draws are a pure function of (sample key, branch), whatever the world size."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniform(keys: Tensor, branches: int) -> Tensor:
    """Return one uniform number in [0, 1) per sample and branch.

    Shape: keys int64 (B,) → float32 (B, branches).
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (splitmix64).
    """
    counter = torch.arange(1, branches + 1, device=keys.device, dtype=torch.int64)
    z = keys[:, None] + counter[None, :] * _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    z = z ^ _shift(z, 31)
    return _shift(z, 40).float() / (1 << 24)


def keep_scales(draws: Tensor, drop_rates: tuple[float, ...]) -> Tensor:
    """Return 0 for a dropped sample and 1/keep for a kept one.

    Shape: draws (B, branches), a rate for each branch → (B, branches).
    """
    keep = _keep_rates(drop_rates, draws.device)
    return (draws < keep).float() / keep


@lru_cache
def _keep_rates(drop_rates: tuple[float, ...], device: torch.device) -> Tensor:
    """Make them once: a copy of numbers to a GPU waits for all that the GPU has to do."""
    return 1.0 - torch.tensor(drop_rates, device=device)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign, which torch's own shift would copy in."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
