"""The checkpoint that is kept as the best is of the step that was judged, and of none near it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatnet.checkpoint.reader import Checkpoint
from coatnet.runtime.run_directory import RunDirectory, read_lines

from tiny_runs import arguments

pytestmark = pytest.mark.slow


def test_the_step_that_was_judged_the_best_stays_over_a_stop_and_no_other_has_its_figures(
    place: Path, tmp_path: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    every = ["evaluate.every=3 steps", "save.every=4 steps", "save.last=1", "save.best=ema_top1"]
    given = arguments(place, str(tmp_path / "run"), *every)
    for steps in (5, 5, 0):
        on_ranks("pretrain_run", world_size=2, arguments=given, stop_after=steps)
    run = RunDirectory(tmp_path / "run")
    judged = {
        row["samples_seen"] // 24: row["evaluate/ema_top1"]
        for row in read_lines(run.metrics)
        if "evaluate/ema_top1" in row
    }
    best = min(judged, key=lambda step: (-judged[step], step))
    kept = {int(path.name.removeprefix("step-")): path for path in run.checkpoints.glob("step-*")}
    assert best % 4 and best in kept
    for step, path in kept.items():
        assert Checkpoint(path).facts["figures"].get("ema_top1") == judged.get(step)
