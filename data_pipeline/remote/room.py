"""Whether the cache of a node has room for the shards that its ranks read at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_pipeline.config import DataConfig
from data_pipeline.manifest import ShardEntry
from data_pipeline.order import Order

_GB = 10**9


def too_small(corpora: Sequence[Sequence[ShardEntry]], data: DataConfig, *, node_share: float) -> str | None:
    """Return a warning where shards would leave the cache that are read again soon.

    A node's lanes each read one window of shards, and the shard that follows it, in random order.

    Args:
        corpora: the shards of each remote corpus of the mixture.
        node_share: of the lanes, on this node.
    """
    held = 0.0
    for shards in corpora:
        counts = [shard.samples for shard in shards]
        lanes = Order(counts, seed=0, lanes=data.lanes, window=data.window).lanes
        open_at_once = min(len(shards), math.ceil(lanes * node_share) * (data.window + 1))
        held += open_at_once * sum(shard.bytes for shard in shards) / len(shards)
    if held <= data.cache.limit_bytes:
        return None
    needed = math.ceil(1.1 * held / _GB)
    return (
        f"warning: data.cache.limit is {data.cache.limit}, and this node reads {held / _GB:.1f} GB of shards "
        f"at the same time: they would be fetched again and again; data.cache.limit='{needed} GB' keeps "
        "them, and more nodes share them"
    )
