"""Keyed permutations of 0 … n−1 that are evaluated at single points, for arrays of points at once.

Every number of the data order comes from here: a pure function of (key, size, point), so resuming costs
nothing. Knows nothing of samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.counter import mix

_PAIRS_OF_ROUNDS = 4
_MIN_BITS = 4  # with 3 bits, pairs of 5 to 8 elements come out uneven (chi-square 8 times its expectation)
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]


def derive_keys(key: int, parts: NDArray[np.integer]) -> Words:
    """Derive one key per part from a parent key.

    Shape: parts (n,) → (n,).
    """
    words = np.asarray(parts, dtype=np.int64).view(np.uint64)
    return mix(mix(words + np.uint64(_GOLDEN)) ^ np.uint64(key & _MASK))


def derive_key(key: int, *parts: int) -> int:
    """Derive a key from a parent key along a path of numbers."""
    for part in parts:
        key = int(derive_keys(key, np.array([part]))[0])
    return key


def permute(points: NDArray[np.integer], sizes: NDArray[np.integer], keys: Words) -> Integers:
    """Map each point to its image under the permutation of 0 … size−1 that its key names.

    A Feistel network on the smallest sufficient number of bits; points that leave the domain walk on along
    their cycle until they are back (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): fewer
    than two walks on average, since the network's domain is less than twice the size, tiny ones aside.

    Shape: points, sizes, keys (n,) → (n,).
    """
    points, sizes, keys = np.broadcast_arrays(
        np.asarray(points, dtype=np.uint64), np.asarray(sizes, dtype=np.uint64), keys
    )
    assert (points < sizes).all(), "a point lies outside its domain"
    result = np.array(points)
    bits = np.maximum(np.frexp((sizes - np.uint64(1)).astype(np.float64))[1], _MIN_BITS).astype(np.uint64)
    outside = np.flatnonzero(sizes > 1)
    while len(outside):
        result[outside] = _feistel(result[outside], bits[outside], keys[outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result.astype(np.int64)


def shuffled(count: int, key: int) -> Integers:
    """Return 0 … count−1 in keyed order: all of a permutation, for small counts such as a corpus' shards."""
    return np.argsort(derive_keys(key, np.arange(count)), kind="stable")


def _feistel(values: Words, bits: Words, keys: Words) -> Words:
    low_bits = (bits + np.uint64(1)) >> np.uint64(1)
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << (bits - low_bits)) - one
    low, high = values & low_mask, values >> low_bits
    for turn in range(_PAIRS_OF_ROUNDS):
        salt = np.uint64((2 * turn + 1) * _GOLDEN & _MASK)
        high = high ^ (mix(low + (keys ^ salt)) & high_mask)
        salt = np.uint64((2 * turn + 2) * _GOLDEN & _MASK)
        low = low ^ (mix(high + (keys ^ salt)) & low_mask)
    return (high << low_bits) | low
