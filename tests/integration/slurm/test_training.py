"""Real training on a real SLURM: whatever happens to a run, its weights are equal to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cancel import cancel_run
from cluster.status import read_status
from coatnet.config import UserError

from fake_cluster import FakeCluster
from runs import Run
from training import BATCH, STEPS, final_digest, make_corpus, samples_seen, train

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
every_scenario = pytest.mark.every_scenario


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(slurm_cluster: FakeCluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of a run that nothing happened to."""
    run = train(slurm_cluster, tmp_path_factory.mktemp("runs") / "undisturbed", shards, hardware="cpu2")
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    assert samples_seen(run) == STEPS * BATCH
    assert json.loads((run.directory / "plan.json").read_text())["world_size"] == 2
    return final_digest(run)


def begin(cluster: FakeCluster, directory: Path, shards: Path, **options: Any) -> Run:
    """Submit a run and wait until it has taken a step."""
    run = train(cluster, directory, shards, **options)
    cluster.wait_for(lambda: samples_seen(run) > 0, seconds=120, what="the first metrics")
    return run


def finish(run: Run, *, outcomes: list[str] | None = None) -> str:
    """Wait for the run's end and return its digest."""
    assert run.ends("COMPLETED", "FAILED", "CANCELLED", seconds=240) == "COMPLETED", run.log()
    if outcomes is not None:
        assert [life.outcome for life in run.lives] == outcomes
    assert samples_seen(run) == STEPS * BATCH
    return final_digest(run)


def checkpoint_steps(run: Run) -> list[int]:
    """Return the steps of the checkpoints that are there."""
    found = run.directory.glob("checkpoints/step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def test_a_warned_run_saves_once_is_requeued_and_ends_with_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "warned", shards, every="1000 steps")
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    slurm_cluster.wait_for(lambda: len(run.lives) == 2, seconds=60, what="the second life")
    assert checkpoint_steps(run) == [run.lives[1].step], "exactly one save when warned"
    assert finish(run, outcomes=["stopped", "done"]) == undisturbed


@every_scenario
@pytest.mark.parametrize("partition", ["batch", "patient"], ids=["without grace", "with grace"])
def test_a_preempted_run_ends_with_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path, partition: str
) -> None:
    run = begin(slurm_cluster, tmp_path / "preempted", shards, partition=partition)
    other = slurm_cluster.client(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=true",
    )
    slurm_cluster.wait_for_state(other.strip(), "COMPLETED")
    assert finish(run) == undisturbed
    assert len(run.lives) == 2


@every_scenario
def test_a_cancelled_run_saves_and_goes_on_when_it_is_submitted_again(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "cancelled", shards, every="1000 steps")
    assert cancel_run(run.directory) == [run.job_id]
    assert run.ends("CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED"
    assert read_status(run.directory, queue={}).state == "cancelled"
    assert len(checkpoint_steps(run)) == 1
    with pytest.raises(UserError, match="--release"):
        train(slurm_cluster, run.directory, shards, every="1000 steps")
    again = train(slurm_cluster, run.directory, shards, every="1000 steps", release=True)
    assert finish(again) == undisturbed


@every_scenario
def test_a_killed_rank_is_started_again_in_place(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "killed", shards)
    slurm_cluster.kill_ranks(run.lives[0].nodes[1])
    assert finish(run, outcomes=["done"]) == undisturbed
    assert run.lives[0].tries == 2


@every_scenario
def test_a_run_whose_node_loses_power_goes_on_elsewhere(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "power", shards)
    victim = run.lives[0].nodes[1]
    slurm_cluster.kill_node(victim)
    try:
        assert finish(run) == undisturbed
        assert victim not in run.lives[-1].nodes
    finally:
        slurm_cluster.restore_node(victim)


@every_scenario
def test_a_frozen_node_that_comes_back_commits_nothing(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "frozen", shards)
    victim = run.lives[0].nodes[1]
    slurm_cluster.freeze_node(victim)
    try:
        slurm_cluster.wait_for(lambda: len(run.lives) == 2, seconds=120, what="the second life")
        slurm_cluster.thaw_node(victim)
        assert finish(run) == undisturbed
    finally:
        slurm_cluster.thaw_node(victim)
        slurm_cluster.restore_node(victim)


@every_scenario
def test_a_run_that_its_user_requeues_ends_with_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "requeued", shards)
    slurm_cluster.client("scontrol", "requeue", run.job_id)
    assert finish(run) == undisturbed


@every_scenario
def test_a_chain_ends_with_the_same_bits_and_leaves_no_successor(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "chain", shards, continuation="chain")
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    slurm_cluster.wait_for(lambda: run.marker("done"), seconds=120, what="the end of the chain")
    assert final_digest(run) == undisturbed
    slurm_cluster.wait_for(
        lambda: not slurm_cluster.client("squeue", "-h").strip(), seconds=30, what="no jobs"
    )


@every_scenario
def test_a_run_on_four_ranks_of_two_nodes_sees_every_sample_once(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = train(slurm_cluster, tmp_path / "four", shards, tasks_per_node=2)
    finish(run, outcomes=["done"])
