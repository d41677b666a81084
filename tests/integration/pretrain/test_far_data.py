"""A store that stops answering under a run: the rank that waits for data is waited for, and nobody hangs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer

from coatnet.runtime.lives import read_lives
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

from tiny_runs import STEPS, arguments

pytestmark = pytest.mark.slow
OnRanks = Callable[..., list[Any]]
LATE = 17  # shards are asked for until the store is away: the first step has come by then
HANG_SECONDS, AWAY = 5.0, 6  # a transfer stalls for two seconds, so often


class LateOutage(FaultServer):
    """Stalls with the shard that is asked for as the so-and-so-manieth."""

    def next_fault(self, name: str, ranged: str | None) -> str:
        if name.endswith(".tar") and name not in self.requests and len(self.shards) == LATE - 1:
            self.faults[name] = ["stall"] * AWAY
        return super().next_fault(name, ranged)

    @property
    def shards(self) -> list[str]:
        return [name for name in self.requests if name.endswith(".tar")]


@pytest.fixture(scope="module")
def shards(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far") / "shards"
    shard_corpus(place / "images", folder, options=ShardOptions(shard_samples=2), quiet=True)
    return folder


def test_a_run_waits_for_a_store_for_longer_than_a_hang_may_take(
    place: Path, shards: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    slow_order = ["data.lanes=2", "data.window=1", "data.prefetch=1", "data.cache.ahead_shards=0"]
    slow_order += ["train.global_batch=8"]
    bounds = [f"guard.hang_seconds={HANG_SECONDS}", "guard.start_seconds=50", "data.cache.stall_seconds=2"]
    run = tmp_path / "run"
    with LateOutage(shards) as server:
        far = [f"data.train={server.url}", f"data.cache.directory={tmp_path / 'cache'}", "data.evaluate=null"]
        words = arguments(place, str(run), *far, *slow_order, *bounds)
        on_ranks("pretrain_run", world_size=2, arguments=words)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == STEPS and summary["every_sample_once"]
    told = [event["text"] for event in RunDirectory(run).read_events() if "text" in event]
    assert len(told) == 1 and f"waits for its batch: {server.url}/" in told[0], told
    (life,) = read_lives(run / "account")
    assert life.seconds["data_wait"] > HANG_SECONDS  # mean of the ranks, of which one may wait for the other
