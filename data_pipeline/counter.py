"""Counter-based random numbers: a pure function of (key, stream, counter). Knows nothing of what they decide.

A sample's key is an int64 made from (seed, epoch, sample id); a stream names the decision ("crop", "mixup");
so a sample's augmentation never depends on the batch, the thread or the rank that meets it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GAMMA_TRIES = 8  # one try is refused in < 5 % of cases: all eight with probability < 1e-10


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's finaliser of each value, a bijection on 64 bits.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def bits(keys: NDArray[np.int64], stream: str, *, count: int) -> NDArray[np.uint64]:
    """Return `count` random words per key.

    Shape: keys (n,) → (n, count).
    """
    base = mix(np.asarray(keys, dtype=np.int64).view(np.uint64) ^ _stream_word(stream))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return mix(base[:, None] + counters[None, :])


def uniforms(keys: NDArray[np.int64], stream: str, *, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) per key.

    Shape: keys (n,) → (n, count).
    """
    return (bits(keys, stream, count=count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def betas(keys: NDArray[np.int64], stream: str, *, alpha: float) -> NDArray[np.float64]:
    """Return one draw of Beta(alpha, alpha) per key.

    Shape: keys (n,) → (n,).
    """
    first = _gammas(keys, f"{stream}/first", shape=alpha)
    second = _gammas(keys, f"{stream}/second", shape=alpha)
    return first / np.maximum(first + second, np.finfo(np.float64).tiny)


def _gammas(keys: NDArray[np.int64], stream: str, *, shape: float) -> NDArray[np.float64]:
    """Draw Gamma(shape).

    Source: Marsaglia, Tsang, "A simple method for generating gamma variables" (2000); below 1 by its boost.
    """
    draws = uniforms(keys, stream, count=3 * _GAMMA_TRIES + 1)
    boosted = shape if shape >= 1.0 else shape + 1.0
    d = boosted - 1.0 / 3.0
    radius, angle, accept = (draws[:, 1 + i :: 3] for i in range(3))
    normal = np.sqrt(-2.0 * np.log1p(-radius)) * np.cos(2.0 * np.pi * angle)
    v = np.maximum(1.0 + normal / np.sqrt(9.0 * d), 0.0) ** 3
    safe = np.where(v > 0.0, v, 1.0)
    good = (v > 0.0) & (np.log1p(-accept) < 0.5 * normal**2 + d * (1.0 - safe + np.log(safe)))
    chosen = d * v[np.arange(len(v)), good.argmax(axis=1)]
    return chosen if shape >= 1.0 else chosen * (1.0 - draws[:, 0]) ** (1.0 / shape)


def _stream_word(stream: str) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(stream.encode(), digest_size=8).digest(), dtype="<u8")[0]
