"""Finds samples of equal bytes before the shards are planned. Only samples of equal size are read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.sharding.job import Oddity, read_item
from data_pipeline.sharding.listing import Listing

_THREADS = 8


def without_duplicates(listing: Listing) -> tuple[NDArray[np.int64], list[Oddity]]:
    """Return the samples to keep, the first of each kind, and a line of the report for each other one."""
    _, inverse, counts = np.unique(listing.size, return_inverse=True, return_counts=True)
    suspects = np.flatnonzero(counts[inverse] > 1)
    first_of: dict[str, int] = {}
    dropped: list[Oddity] = []
    keep = np.ones(len(listing), dtype=np.bool_)
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(lambda number: _content_hash(listing, int(number)), suspects)
        for number, content in zip(suspects.tolist(), hashes, strict=True):
            if content is None:
                continue
            first = first_of.setdefault(content, number)
            if first != number:
                keep[number] = False
                dropped.append(_named(listing, number, first))
    return np.flatnonzero(keep), dropped


def _content_hash(listing: Listing, number: int) -> str | None:
    try:
        return xxhash.xxh3_128_hexdigest(read_item(listing.item(number)))
    except OSError:
        return None  # the shard's writer will meet it again, and name it


def _named(listing: Listing, number: int, first: int) -> Oddity:
    one, other = listing.item(number), listing.item(first)
    differs = ", of another label" if one.label != other.label else ""
    return Oddity(one.name, ["duplicate"], "drop", f"equals {other.name}{differs}")
