"""Nodes may have copies of the data; where these differ no step is taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.index import index_path
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

from tiny_runs import arguments

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("section", ["data.train", "data.evaluate"])
def test_ranks_that_would_read_different_data_take_no_step_and_say_which(
    place: Path, tmp_path: Path, on_ranks: Callable[..., list[Any]], section: str
) -> None:
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    for node in nodes:
        shutil.copytree(place / "images", node / "images")
        shard_corpus(node / "images", node / "shards", quiet=True)
        os.utime(node / "images" / "class0" / "000.jpg", (1, 1))  # a copy, and of another hour
    given = arguments(place, str(tmp_path / "run"), "data.train=shards", "data.evaluate=images")
    given += ["train.duration=1 steps", "evaluate.every=1 steps"]
    answers = on_ranks("run_over_copies", world_size=2, arguments=given, folders=list(map(str, nodes)))
    assert answers == ["finished"] * 2
    shutil.rmtree(nodes[1] / "shards")
    (nodes[1] / "images" / "class0" / "000.jpg").unlink()
    shard_corpus(
        (nodes[0] if section == "data.evaluate" else nodes[1]) / "images", nodes[1] / "shards", quiet=True
    )
    given.append(f"run.directory={tmp_path / 'other'}")
    answers = on_ranks("run_over_copies", world_size=2, arguments=given, folders=list(map(str, nodes)))
    here = os.uname().nodename
    assert answers[0] == answers[1] and answers[0].startswith(
        f"{section}: rank 1 on {here} reads other data than rank 0 on {here} (1 such rank)"
    ), answers


def test_ranks_share_the_counting_of_classes_and_the_one_that_meets_a_lost_index_says_so(
    place: Path, tmp_path: Path, on_ranks: Callable[..., list[Any]], ask_ranks: Callable[..., list[Any]]
) -> None:
    """Where each reads all of them, 512 ranks open 10,000 indexes five million times at every start."""
    made = shard_corpus(place / "images", tmp_path, options=ShardOptions(shard_samples=5), quiet=True)["all"]
    indexes = sorted(index_path(tmp_path / shard.name) for shard in made.shards)
    first, second = on_ranks("weigh_classes", world_size=2, folder=str(tmp_path))
    assert sorted([*first["read"], *second["read"]]) == [path.name for path in indexes]
    assert abs(len(first["read"]) - len(second["read"])) <= 1
    (alone,) = on_ranks("weigh_classes", world_size=1, folder=str(tmp_path))
    assert first["weights"] == second["weights"] == alone["weights"]
    indexes[1].unlink()
    _, answer = ask_ranks("weigh_classes", world_size=2, folder=str(tmp_path))
    assert f"RankError: loss.class_weights is 'balanced': {indexes[1]}: No such file" in answer["error"]
