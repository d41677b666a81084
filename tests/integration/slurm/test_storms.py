"""Storms: one interruption after the other, in every way that SLURM has, and hardly a step in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_training import begin, checkpoint_steps, finish, shards, status_of, undisturbed

from coatnet.runtime.account import read_lives
from coatnet.runtime.run_directory import RunDirectory

from fake_cluster import FakeCluster
from runs import Run, start
from training import samples_seen

__all__ = ["shards", "undisturbed"]  # fixtures
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.every_scenario, pytest.mark.timeout(900)]


def take_a_step(run: Run, *, life: int) -> None:
    """Wait until a life of the run has taken a step of its own."""

    def has_taken_one() -> bool:
        begun = [event for event in RunDirectory(run.directory).read_events() if event["kind"] == "resume"]
        return len(begun) == life - 1 and samples_seen(run) > begun[-1]["samples_seen"]

    run.cluster.wait_for(has_taken_one, seconds=300, what=f"a step of life {life}")


def test_ten_requeues_in_a_row_with_a_step_or_two_between_them_leave_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "storm", shards, every="1000 steps", pace=0.5)
    ways: list[Callable[[], str]] = [
        lambda: slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id),
        lambda: slurm_cluster.client("scancel", "--signal=USR1", run.job_id),
        lambda: slurm_cluster.client("scancel", "--signal=USR1", "--full", run.job_id),
        lambda: slurm_cluster.client("scontrol", "requeue", run.job_id),
    ]
    for number in range(10):
        ways[number % len(ways)]()
        take_a_step(run, life=number + 2)
    assert finish(run, lives=11) == undisturbed
    assert len(checkpoint_steps(run)) == 11, "each life saved once"


def test_a_suspended_run_goes_on_where_it_was(
    slurm_cluster: FakeCluster, shards: Path, tmp_path: Path
) -> None:
    hang = ("guard.hang_seconds=5", "guard.start_seconds=50")
    # the command itself: SLURM does not know of preloaded ranks
    run = begin(slurm_cluster, tmp_path / "suspended", shards, steps=300, pace=None, overrides=hang)
    slurm_cluster.client("scontrol", "suspend", run.job_id)
    assert slurm_cluster.state(run.job_id) == "SUSPENDED"
    before = samples_seen(run)
    time.sleep(12.0)  # longer than two patiences
    assert samples_seen(run) == before
    slurm_cluster.client("scontrol", "resume", run.job_id)
    finish(run, outcomes=["done"])
    (life,) = read_lives(RunDirectory(run.directory).account)
    assert life.seconds["idle"] > 8
    assert sum(life.seconds.values()) == pytest.approx(life.ended - life.began, rel=0.01)


def test_a_time_limit_that_is_shortened_under_a_run_warns_it_in_time(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    options = ("save_every=100000", "step_seconds=0.2")
    run = start(slurm_cluster, tmp_path / "run", steps=400, options=options, warning_seconds=30)
    run.reach(5)
    slurm_cluster.client("scontrol", "update", f"JobId={run.job_id}", "TimeLimit=1")
    assert run.ends("COMPLETED", "FAILED", "TIMEOUT", seconds=400) == "COMPLETED", run.log()
    assert run.value == run.expected
    outcomes = [life.outcome for life in run.lives]
    assert len(outcomes) > 1 and outcomes == ["stopped"] * (len(outcomes) - 1) + ["done"]


def test_a_node_that_is_drained_while_its_job_saves_takes_no_other_life(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=100, options=("save_every=1000",))
    run.reach(10)
    drained = run.lives[0].nodes[0]
    try:
        slurm_cluster.client("scontrol", "update", f"NodeName={drained}", "State=DRAIN", "Reason=test")
        slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
        assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    finally:
        slurm_cluster.client("scontrol", "update", f"NodeName={drained}", "State=RESUME")
    assert run.value == run.expected
    assert [life.outcome for life in run.lives] == ["stopped", "done"]
    assert drained not in run.lives[1].nodes
    assert status_of(run).state == "done"
