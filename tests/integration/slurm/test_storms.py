"""Storms: one interruption after the other, in every way that SLURM has, and hardly a step in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_training import begin, checkpoint_steps, finish, shards, undisturbed

from coatnet.runtime.lives import read_lives
from coatnet.runtime.run_directory import RunDirectory

from fake_cluster import FakeCluster
from runs import Run
from training import samples_seen, train

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


def _ranks_stand_still(run: Run) -> bool:
    states = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if "pretrain" in words and str(run.directory) in " ".join(words):
                states.append(process.status())
    return bool(states) and set(states) == {psutil.STATUS_STOPPED}


def test_a_suspended_run_goes_on_where_it_was(
    slurm_cluster: FakeCluster, shards: Path, tmp_path: Path
) -> None:
    hang = ("guard.hang_seconds=5", "guard.start_seconds=50")
    # the command itself: SLURM does not know of preloaded ranks
    run = begin(slurm_cluster, tmp_path / "suspended", shards, steps=300, pace=None, overrides=hang)
    slurm_cluster.client("scontrol", "suspend", run.job_id)
    assert slurm_cluster.state(run.job_id) == "SUSPENDED"
    # SLURM says so before its daemons on the nodes have stopped anyone
    slurm_cluster.wait_for(lambda: _ranks_stand_still(run), seconds=30, what="stopped ranks")
    before = samples_seen(run)
    time.sleep(12.0)  # longer than two patiences
    assert samples_seen(run) == before
    slurm_cluster.client("scontrol", "resume", run.job_id)
    finish(run, outcomes=["done"])
    (life,) = read_lives(RunDirectory(run.directory).account)
    assert life.seconds["idle"] > 8
    assert sum(life.seconds.values()) == pytest.approx(life.ended - life.began, rel=0.01)


def test_a_node_whose_weights_went_wrong_without_a_word_is_left_out_and_leaves_no_trace(
    slurm_cluster: FakeCluster, shards: Path, tmp_path: Path
) -> None:
    four = {"tasks_per_node": 2, "steps": 30, "every": "10 steps", "overrides": ("guard.digest_every=5",)}
    expected = finish(train(slurm_cluster, tmp_path / "sound", shards, pace=0.0, **four), outcomes=["done"])
    run = train(slurm_cluster, tmp_path / "flipped", shards, flips_at=20, **four)
    assert finish(run, outcomes=["excluded", "done"]) == expected
    victim = run.lives[0].nodes[1]
    assert "silent corruption: the weights of ranks [3] differ" in run.lives[0].excluded[victim]
    assert victim not in run.lives[1].nodes
    assert run.lives[1].step == 10, "nothing of what came after the flipped bit was saved"
