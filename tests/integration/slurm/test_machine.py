"""The machine around the ranks on a real SLURM, with a stand-in for training: what happens to a run, and the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_cluster import FakeCluster
from runs import start

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


def test_a_run_completes(slurm_cluster: FakeCluster, tmp_path: Path) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=20)
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    assert run.value == run.expected
    assert [life.outcome for life in run.lives] == ["done"]


def test_a_warned_run_saves_is_requeued_and_goes_on_at_the_same_step(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=100, options=("save_every=1000",))
    run.reach(30)
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    assert run.value == run.expected
    assert [life.outcome for life in run.lives] == ["stopped", "done"]
    assert run.lives[1].step >= 30
    taken = [int(line.split()[0]) for line in (run.directory / "steps.log").read_text().splitlines()]
    assert taken == list(range(1, 101)), "a step was lost or taken twice"
