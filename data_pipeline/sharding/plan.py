"""Which sample goes into which shard: a pure function of (listing, options), so that a restart goes on."""

from __future__ import annotations

import json
from math import ceil
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.permutation import shuffled
from data_pipeline.sharding.listing import Listing
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.tar_format import BLOCK

IN_PLACE = "in-place-"  # so begin the plans of tars that stay as they are
_RECORD_OVERHEAD_BYTES = 3 * BLOCK + BLOCK // 2  # two headers, the label's block, half a block of padding


def plan_shards(
    listing: Listing, chosen: NDArray[np.int64], options: ShardOptions
) -> list[NDArray[np.int64]]:
    """Cut the chosen samples into shards of about equal size.

    Shape: chosen (n,), numbers of samples in the listing → one array of numbers per shard.
    """
    if options.shuffle:
        chosen = chosen[shuffled(len(chosen), options.seed)]
    if options.shard_samples is not None:
        shards = ceil(len(chosen) / options.shard_samples)
        edges = np.arange(1, shards) * len(chosen) // shards
    else:
        ends = np.cumsum(listing.size[chosen] + _RECORD_OVERHEAD_BYTES)
        shards = min(len(chosen), ceil(int(ends[-1]) / options.shard_bytes))
        edges = np.searchsorted(ends, np.arange(1, shards) * int(ends[-1]) / shards)
    return [part for part in np.split(chosen, np.unique(edges)) if len(part)]


def plan_name(listing: Listing, chosen: NDArray[np.int64], options: dict[str, Any]) -> str:
    """Name what is made of the chosen samples by the options that decide its content."""
    content = json.dumps(options, sort_keys=True).encode()
    return f"{listing.digest()}-{xxhash.xxh3_64_hexdigest(content + chosen.tobytes())}"


def split_validation(
    listing: Listing, chosen: NDArray[np.int64], share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples into (train, validation) by the hash of their names: a sample never changes sides."""
    names = (listing.name(int(number)).encode("utf-8", "surrogateescape") for number in chosen)
    below = np.fromiter((xxhash.xxh3_64_intdigest(name) for name in names), np.uint64, len(chosen))
    held_out = below < np.uint64(int(share * 2**64))
    return chosen[~held_out], chosen[held_out]
