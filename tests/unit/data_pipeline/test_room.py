"""Whether a node's cache can hold what its lanes read at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coatnet.config import UserError
from data_pipeline.config import CacheConfig, DataConfig
from data_pipeline.manifest import ShardEntry
from data_pipeline.remote import cache as remote_cache
from data_pipeline.remote.remote_files import open_cache
from data_pipeline.remote.room import too_small


def _shards(count: int) -> list[ShardEntry]:
    return [ShardEntry(f"{number:06}.tar", 1200, 128_000_000, "0", "0") for number in range(count)]


def _warning(folder: Path, *corpora: int, limit: str | None, nodes: int = 1) -> str | None:
    cache = open_cache(CacheConfig(directory=str(folder), limit=limit))
    return too_small(cache, [_shards(count) for count in corpora], DataConfig(), node_share=1 / nodes)


def test_a_start_warns_where_one_node_reads_more_shards_at_once_than_its_cache_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_cache, "_free_bytes", lambda _: 10**12)
    warning = _warning(tmp_path, 1100, limit="64 GB")
    assert warning is not None
    assert "has room for 64.0 GB, and this node reads 140.8 GB of shards" in warning
    assert "data.cache.limit='155 GB' keeps them" in warning
    assert _warning(tmp_path, 1100, limit="155 GB") is None


def test_a_start_warns_where_the_disk_of_the_cache_is_too_small_or_too_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("kept", 1000), (".kept.lock", 0), ("of others", 5000)):
        (tmp_path / name).write_bytes(b"x" * size)
    monkeypatch.setattr(remote_cache, "_free_bytes", lambda _: 100 * 10**9)
    warning = _warning(tmp_path, 1100, limit="155 GB")
    assert warning is not None and "has room for 100.0 GB" in warning
    assert "a data.cache.directory with 155 GB, and that as data.cache.limit, keeps them" in warning
    assert open_cache(CacheConfig(directory=str(tmp_path))).disk_bytes() == 100 * 10**9 + 1000


def test_nodes_share_the_lanes_and_a_small_corpus_fits_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_cache, "_free_bytes", lambda _: 10**12)
    assert _warning(tmp_path, 2_000, limit="64 GB", nodes=4) is None
    assert _warning(tmp_path, 2_000, 2_000, limit="64 GB", nodes=4) is not None
    assert _warning(tmp_path, 100, limit="64 GB") is None


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.cache\.directory: .*/file/cache: Not a directory"):
        open_cache(CacheConfig(directory=str(tmp_path / "file" / "cache")))


def test_half_of_its_disk_is_a_cache_s_limit_unless_one_is_given(tmp_path: Path) -> None:
    half = shutil.disk_usage(tmp_path).total // 2
    assert open_cache(CacheConfig(directory=str(tmp_path))).limit_bytes == half
