"""Real training on a real SLURM: whatever happens to a run, its weights are equal to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import slurm
from cluster.cancel import cancel_run
from cluster.site import PreflightConfig
from cluster.status import RunStatus, read_status
from coatnet.config import UserError
from coatnet.runtime.lease import newest_epoch

from container import NAME, make_image
from fake_cluster import FakeCluster
from runs import Run, failing_on
from training import BATCH, final_digest, make_corpus, samples_seen, train

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2400)]
every_scenario = pytest.mark.every_scenario


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(
    slurm_cluster: FakeCluster,
    shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
    once: Callable[[str, Callable[[], str]], str],
) -> str:
    """Return the digest of a run that nothing happened to."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    return once("undisturbed", lambda: finish(train(slurm_cluster, directory, shards, pace=0.0), lives=1))


def begin(cluster: FakeCluster, directory: Path, shards: Path, **options: Any) -> Run:
    """Submit a run and wait until it has taken a step."""
    run = train(cluster, directory, shards, **options)
    cluster.wait_for(lambda: samples_seen(run) > 0, seconds=300, what="the first metrics")
    return run


def finish(run: Run, *, outcomes: list[str] | None = None, lives: int | None = None) -> str:
    """Wait for the run's end, check what it tells of itself and return its digest."""
    run.cluster.wait_for(lambda: run.has_ended(), seconds=900, what="the end of the run")
    assert run.marker("done"), f"{status_of(run)}\n{run.log()}"
    assert status_of(run).state == "done"
    if outcomes is not None:
        assert [life.outcome for life in run.lives] == outcomes
    if lives is not None:
        assert len(run.lives) == lives, run.log()
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary["every_sample_once"] and summary["samples"] == run.steps * BATCH
    return final_digest(run)


def status_of(run: Run) -> RunStatus:
    """Return what `coatnet status` knows."""
    return read_status(run.directory, queue=slurm.queue())


def checkpoint_steps(run: Run) -> list[int]:
    """Return the steps of the checkpoints that are there; none is ever removed."""
    found = run.directory.glob("checkpoints/step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def one_save_per_life(run: Run) -> bool:
    """Return whether each life saved once, at its end; for runs that never save on the way."""
    return checkpoint_steps(run) == [*(life.step for life in run.lives[1:] if life.step > 0), run.steps]


@every_scenario
def test_the_installed_command_completes_with_the_same_bits_as_a_preloaded_one(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = train(slurm_cluster, tmp_path / "installed", shards, pace=None, hardware="cpu2")
    assert finish(run, outcomes=["done"]) == undisturbed
    assert json.loads((run.directory / "plan.json").read_text())["world_size"] == 2


def test_a_warned_run_saves_once_is_requeued_and_ends_with_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "warned", shards, until_told=True, every="1000 steps")
    assert status_of(run).state == "running"
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    assert finish(run, outcomes=["stopped", "done"]) == undisturbed
    assert one_save_per_life(run)


@every_scenario
def test_a_run_longer_than_its_time_limit_takes_several_lives(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    # SLURM looks at limits twice a minute and may warn half a minute early, so a life is 20 to 50 s here
    limit = {"time": "00:01:00", "warning_seconds": 10}
    run = train(slurm_cluster, tmp_path / "limit", shards, every="1000 steps", pace=1.0, **limit)
    assert finish(run) == undisturbed
    outcomes = [life.outcome for life in run.lives]
    assert outcomes == ["stopped"] * (len(outcomes) - 1) + ["done"]
    assert len({life.step for life in run.lives}) > 1, "no life was ended by its limit"
    assert one_save_per_life(run)


@every_scenario
@pytest.mark.skipif(shutil.which("apptainer") is None, reason="no apptainer here")
def test_a_warned_run_in_a_container_ends_with_the_same_bits(
    slurm_cluster: FakeCluster,
    shards: Path,
    undisturbed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APPTAINER_NO_PRIVS", "1")  # else root asks for capabilities that it may not have
    run = begin(
        slurm_cluster, tmp_path / "inside", shards, every="1000 steps", pace=None,
        environment=["APPTAINER_NO_PRIVS"],
        container=make_image(tmp_path / "image", readable=shards, pace=0.1),
        preflight=PreflightConfig(free_space_bytes=1, shared_memory_bytes=1),
    )  # fmt: skip
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    assert finish(run, outcomes=["stopped", "done"]) == undisturbed
    assert one_save_per_life(run)
    logs = sorted((run.directory / "logs").glob("life-*.rank-*.log"))
    assert len(logs) == 4 and all(f"inside {NAME}" in log.read_text() for log in logs)


@every_scenario
@pytest.mark.parametrize("partition", ["batch", "patient"], ids=["without grace", "with grace"])
def test_a_preempted_run_ends_with_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path, partition: str
) -> None:
    run = begin(
        slurm_cluster,
        tmp_path / "preempted",
        shards,
        until_told=True,
        partition=partition,
        every="1000 steps",
    )
    options = ["--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true"]
    other = slurm_cluster.client("sbatch", "--parsable", *options).strip()
    slurm_cluster.wait_for_state(other, "COMPLETED")
    assert finish(run, lives=2) == undisturbed
    assert one_save_per_life(run)


@every_scenario
def test_scancel_saves_and_stays_until_it_is_submitted_again(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "scancel", shards, until_told=True, every="1000 steps")
    slurm_cluster.client("scancel", run.job_id)
    assert run.ends("CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED"
    assert status_of(run).state == "cancelled"
    forgotten = read_status(run.directory, queue={})  # as SLURM without accounting answers minutes later
    assert (forgotten.state, forgotten.detail) == ("cancelled", "scancel")
    assert len(checkpoint_steps(run)) == 1 and [life.outcome for life in run.lives] == ["ended"]
    again = train(slurm_cluster, run.directory, shards, every="1000 steps")
    assert finish(again, lives=2) == undisturbed
    assert one_save_per_life(run)


@every_scenario
def test_a_run_cancelled_by_coatnet_goes_on_only_when_it_is_released(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "cancelled", shards, until_told=True, every="1000 steps")
    assert cancel_run(run.directory) == [run.job_id]
    assert run.ends("CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED"
    found = status_of(run)
    assert (found.state, found.detail) == ("cancelled", "coatnet cancel")
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
    assert run.lives[0].tries == 2 and "status 137" in status_of(run).last_error


@every_scenario
def test_ranks_killed_on_this_node_and_on_that_fail_the_run_after_three_tries(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "always", shards)
    kill_in_every_try(run, [1, 0, 1])
    assert run.ends("COMPLETED", "FAILED") == "FAILED"
    assert [(life.outcome, life.tries) for life in run.lives] == [("failed", 3)]
    found = status_of(run)
    assert found.state == "failed" and "status 137" in found.detail
    again = train(slurm_cluster, run.directory, shards)
    assert finish(again, lives=2) == undisturbed


@every_scenario
def test_a_node_on_which_ranks_are_killed_twice_is_left_out(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "blamed", shards)
    victim = run.lives[0].nodes[1]
    kill_in_every_try(run, [1, 1])
    assert finish(run, outcomes=["excluded", "done"]) == undisturbed
    assert "killed by a signal there in two tries" in run.lives[0].excluded[victim]
    assert victim not in run.lives[1].nodes


def kill_in_every_try(run: Run, places: list[int]) -> None:
    """Kill the ranks on the node at each place of the first life, one try after the other."""
    for number, place in enumerate(places, start=1):
        node = run.lives[0].nodes[place]
        attempt = f"{run.job_id}.1.{number}"
        run.cluster.wait_for(
            lambda attempt=attempt, node=node: (
                (run.marker("attempt") or {}).get("token") == attempt and run.cluster.has_ranks(node)
            ),
            seconds=300,
            what=f"ranks of try {number}",
        )
        run.cluster.kill_ranks(node)


@every_scenario
@pytest.mark.parametrize("place", [0, 1], ids=["first node", "second node"])
def test_a_run_whose_node_loses_power_goes_on_elsewhere(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path, place: int
) -> None:
    run = begin(slurm_cluster, tmp_path / "power", shards)
    victim = run.lives[0].nodes[place]
    slurm_cluster.kill_node(victim)
    try:
        assert finish(run, lives=2) == undisturbed
        assert victim not in run.lives[-1].nodes
    finally:
        slurm_cluster.restore_node(victim)


@every_scenario
def test_a_run_whose_node_is_set_down_goes_on_elsewhere(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "down", shards)
    victim = run.lives[0].nodes[1]
    slurm_cluster.client("scontrol", "update", f"nodename={victim}", "state=down", "reason=test")
    try:
        assert finish(run, lives=2) == undisturbed
        assert victim not in run.lives[-1].nodes
    finally:
        slurm_cluster.restore_node(victim)


@every_scenario
def test_ranks_of_a_frozen_node_that_comes_back_are_fenced(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "frozen", shards, nodes=1, tasks_per_node=2)
    (victim,) = run.lives[0].nodes
    slurm_cluster.freeze_node(victim)
    try:
        slurm_cluster.wait_for(lambda: len(run.lives) == 2, seconds=300, what="the second life")
        slurm_cluster.wait_for(
            lambda: newest_epoch(run.directory) == 2, seconds=300, what="the second life's lease"
        )
        slurm_cluster.thaw_node(victim, daemons=False)  # nobody but the fence keeps the ranks from committing
        assert finish(run, lives=2) == undisturbed
        slurm_cluster.wait_for(
            lambda: not slurm_cluster.has_ranks(victim), seconds=300, what="the end of the fenced ranks"
        )
        assert newest_epoch(run.directory) == 2
    finally:
        slurm_cluster.thaw_node(victim)
        slurm_cluster.restore_node(victim)


@every_scenario
def test_a_run_that_its_user_requeues_ends_with_the_same_bits(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "requeued", shards, until_told=True, every="1000 steps")
    slurm_cluster.client("scontrol", "requeue", run.job_id)
    slurm_cluster.wait_for(lambda: status_of(run).state == "requeued", seconds=30, what="state requeued")
    assert finish(run, lives=2) == undisturbed


@every_scenario
def test_a_chain_ends_with_the_same_bits_and_leaves_no_successor(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(
        slurm_cluster, tmp_path / "chain", shards, until_told=True, every="1000 steps", continuation="chain"
    )
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    assert finish(run, outcomes=["stopped", "done"]) == undisturbed
    assert one_save_per_life(run)
    slurm_cluster.wait_for(lambda: not slurm_cluster.waiting(), seconds=30, what="no jobs")


@every_scenario
def test_a_chain_survives_a_kill_of_its_batch_script(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "shot", shards, continuation="chain")
    slurm_cluster.kill_batch_script(run.lives[0].nodes[0])
    assert finish(run, outcomes=["", "done"]) == undisturbed


@every_scenario
def test_a_requeued_run_whose_batch_script_is_killed_says_so_and_goes_on_when_submitted(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "shot", shards)
    slurm_cluster.kill_batch_script(run.lives[0].nodes[0])
    assert run.ends("COMPLETED", "FAILED") == "FAILED"
    found = status_of(run)
    assert found.state == "failed" and "life 1 has no end; SLURM says FAILED" in found.detail
    assert finish(train(slurm_cluster, run.directory, shards), lives=2) == undisturbed


@every_scenario
def test_a_run_outlives_the_controller(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "headless", shards)
    slurm_cluster.kill_controller(job_id=run.job_id)
    slurm_cluster.wait_for(lambda: run.marker("done"), seconds=300, what="the end of training", ask=False)
    slurm_cluster.start_controller()
    assert finish(run, outcomes=["done"]) == undisturbed
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED"


@every_scenario
def test_a_node_that_fails_its_checks_is_left_out_of_training(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    checks = failing_on("fake1", tmp_path)
    run = train(slurm_cluster, tmp_path / "bad", shards, preflight=checks)
    assert finish(run, outcomes=["excluded", "done"]) == undisturbed
    assert "this node is bad" in run.lives[0].excluded["fake1"] and "fake1" not in run.lives[1].nodes
    found = json.loads((run.directory / "preflight" / "life-002.try-1.json").read_text())
    facts = found["fake2"]["facts"]
    assert facts["interface"] and facts["read_bytes"] and facts["all_reduce_bytes_per_second"]


@every_scenario
def test_a_second_submission_of_a_running_run_is_refused_and_disturbs_nothing(
    slurm_cluster: FakeCluster, shards: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "twice", shards)
    with pytest.raises(UserError, match=f"has job {run.job_id} already"):
        train(slurm_cluster, run.directory, shards)
    script = run.directory / "submissions" / "0001" / "script.sh"
    twin = slurm_cluster.client("sbatch", "--parsable", str(script)).strip()
    assert slurm_cluster.wait_for_state(twin, "FAILED", "COMPLETED") == "FAILED"
    assert finish(run, outcomes=["done"]) == undisturbed


@every_scenario
def test_four_ranks_give_the_same_bits_on_two_nodes_and_warned_on_four(
    slurm_cluster: FakeCluster, shards: Path, tmp_path: Path
) -> None:
    two = train(slurm_cluster, tmp_path / "two", shards, tasks_per_node=2, pace=0.0, steps=30)
    expected = finish(two, outcomes=["done"])
    run = begin(
        slurm_cluster, tmp_path / "four", shards, until_told=True, nodes=4, every="1000 steps", steps=30
    )
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    assert finish(run, outcomes=["stopped", "done"]) == expected


@every_scenario
def test_a_run_goes_on_at_another_number_of_nodes_with_every_sample_once(
    slurm_cluster: FakeCluster, shards: Path, tmp_path: Path
) -> None:
    run = begin(slurm_cluster, tmp_path / "moved", shards, until_told=True, continuation="none")
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    slurm_cluster.wait_for(lambda: status_of(run).state == "stopped", seconds=60, what="state stopped")
    finish(train(slurm_cluster, run.directory, shards, nodes=4), outcomes=["stopped", "done"])
