"""Nodes may have copies of the data; where these differ no step is taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
