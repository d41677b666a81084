"""Whether the cache of a node has room for the shards that its ranks read at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_pipeline.config import DataConfig
from data_pipeline.manifest import ShardEntry
from data_pipeline.order import Order
from data_pipeline.remote.cache import Cache

_GB = 10**9


def too_small(
    cache: Cache, corpora: Sequence[Sequence[ShardEntry]], data: DataConfig, *, node_share: float
) -> str | None:
    """Return a warning where shards would leave the cache that are read again soon.

    A node's lanes each read one window of shards, and the shard that follows it, in random order.

    Args:
        cache: of this node.
        corpora: the shards of each remote corpus of the mixture.
        node_share: of the lanes, on this node.
    """
    held = 0.0
    for shards in corpora:
        counts = [shard.samples for shard in shards]
        lanes = Order(counts, seed=0, lanes=data.lanes, window=data.window).lanes
        open_at_once = min(len(shards), math.ceil(lanes * node_share) * (data.window + 1))
        held += open_at_once * sum(shard.bytes for shard in shards) / len(shards)
    disk_bytes = cache.disk_bytes()
    room = min(cache.limit_bytes, disk_bytes)
    if held <= room:
        return None
    needed = math.ceil(1.1 * held / _GB)
    remedy = f"data.cache.limit='{needed} GB' keeps them"
    if disk_bytes < needed * _GB:
        remedy = f"a data.cache.directory with {needed} GB, and that as data.cache.limit, keeps them"
    return (
        f"warning: the cache, {cache.folder}, has room for {room / _GB:.1f} GB, and this node reads "
        f"{held / _GB:.1f} GB of shards at the same time: they would be fetched again and again; {remedy}, "
        "and more nodes share them"
    )
