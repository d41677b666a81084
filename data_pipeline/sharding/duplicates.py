"""Finds samples of equal bytes before the shards are planned. Only samples of equal size are read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.sharding.job import Oddity, read_item
from data_pipeline.sharding.listing import Listing

_THREADS = 8
_AT_ONCE = 512  # samples: a pool keeps one or two kB for each that it was given


def of_equal_size(listing: Listing) -> NDArray[np.int64]:
    """Return the samples that others are as large as."""
    _, inverse, counts = np.unique(listing.size, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)


def without_duplicates(
    listing: Listing, suspects: NDArray[np.int64], *, done: Callable[[int], None]
) -> tuple[NDArray[np.int64], list[Oddity]]:
    """Return the samples to keep, the first of each kind, and a line of the report for each other one.

    Args:
        listing: all of them.
        suspects: those that are read, in order.
        done: is told of so many more that were.
    """
    hashes = np.zeros(len(suspects), "S16")
    readable = np.zeros(len(suspects), np.bool_)
    with ThreadPoolExecutor(_THREADS) as pool:
        for begin in range(0, len(suspects), _AT_ONCE):
            some = suspects[begin : begin + _AT_ONCE].tolist()
            for at, content in enumerate(pool.map(partial(_content_hash, listing), some), start=begin):
                if content is not None:
                    hashes[at], readable[at] = content, True
            done(len(some))
    suspects = suspects[readable]
    _, first, kind = np.unique(hashes[readable], return_index=True, return_inverse=True)
    originals = suspects[first[kind]]
    again = suspects != originals
    pairs = zip(suspects[again].tolist(), originals[again].tolist(), strict=True)
    kept = np.setdiff1d(np.arange(len(listing)), suspects[again], assume_unique=True)
    return kept, [_named(listing, number, original) for number, original in pairs]


def _content_hash(listing: Listing, number: int) -> bytes | None:
    try:
        return xxhash.xxh3_128_digest(read_item(listing.item(number)))
    except OSError:
        return None  # the shard's writer will meet it again, and name it


def _named(listing: Listing, number: int, first: int) -> Oddity:
    one, other = listing.item(number), listing.item(first)
    differs = ", of another label" if one.label != other.label else ""
    return Oddity(one.name, ["duplicate"], "drop", f"equals {other.name}{differs}")
