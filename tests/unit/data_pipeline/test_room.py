"""Whether a node's cache can hold what its lanes read at the same time."""

from __future__ import annotations

from data_pipeline.config import CacheConfig, DataConfig
from data_pipeline.manifest import ShardEntry
from data_pipeline.remote.room import too_small


def _shards(count: int) -> list[ShardEntry]:
    return [ShardEntry(f"{number:06}.tar", 1200, 128_000_000, "0", "0") for number in range(count)]


def test_a_start_warns_where_one_node_reads_more_shards_at_once_than_its_cache_keeps() -> None:
    warning = too_small([_shards(1100)], DataConfig(), node_share=1.0)
    assert warning is not None
    assert "data.cache.limit is 64 GB, and this node reads 140.8 GB of shards" in warning
    assert "data.cache.limit='155 GB' keeps them" in warning
    roomy = DataConfig(cache=CacheConfig(limit="155 GB"))
    assert too_small([_shards(1100)], roomy, node_share=1.0) is None


def test_nodes_share_the_lanes_and_a_small_corpus_fits_as_a_whole() -> None:
    assert too_small([_shards(30_000)], DataConfig(), node_share=1 / 4) is None
    assert too_small([_shards(30_000)] * 2, DataConfig(), node_share=1 / 4) is not None
    assert too_small([_shards(100)], DataConfig(), node_share=1.0) is None
    assert too_small([], DataConfig(), node_share=1.0) is None
