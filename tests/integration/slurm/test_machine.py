"""The machine around the ranks on a real SLURM, with a stand-in for training."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster import slurm
from cluster.history import History
from cluster.status import read_status
from coatnet.config import UserError

from fake_cluster import FakeCluster
from runs import failing_on, resubmit, start, start_array, start_pipeline

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_a_cancelled_run_stays_cancelled_and_keeps_its_state(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=10_000, options=("save_every=100000",))
    run.reach(20)
    slurm_cluster.client("scancel", run.job_id)
    assert run.ends("CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED"
    # Seen once on a busy machine: SLURM said so before the batch script had written its last line.
    slurm_cluster.wait_for(lambda: run.lives[-1].outcome, seconds=30, what="the life's end")
    assert [life.outcome for life in run.lives] == ["ended"]
    assert run.value > 1, "nothing was saved on the way out"
    assert read_status(run.directory, queue={}).state == "cancelled", "SLURM forgets; the job's log does not"


def test_a_rank_that_always_crashes_fails_the_job_after_three_tries(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=10_000, options=("fault=7@30",))
    assert run.ends("COMPLETED", "FAILED") == "FAILED"
    assert [(life.outcome, life.tries) for life in run.lives] == [("failed", 3)]
    assert "status 7" in run.lives[0].reason


def test_a_mistake_in_the_config_is_never_tried_again(slurm_cluster: FakeCluster, tmp_path: Path) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=10_000, options=("fault=2@30",))
    assert run.ends("COMPLETED", "FAILED") == "FAILED"
    assert [(life.outcome, life.tries) for life in run.lives] == [("failed", 1)]


@pytest.mark.slow
def test_three_lives_without_a_new_checkpoint_hold_the_run(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(
        slurm_cluster, tmp_path / "run", steps=10_000, options=("save_every=100000", "careless=1"), nodes=1
    )
    for life in (1, 2, 3):
        run.cluster.wait_for(lambda life=life: len(run.lives) == life, seconds=60, what=f"life {life}")
        slurm_cluster.client("scontrol", "requeue", run.job_id)
    assert run.ends("FAILED", "COMPLETED") == "FAILED", run.log()
    held = run.marker("held")
    assert held is not None and "3 lives in a row" in held["reason"]


def test_a_chain_goes_on_in_its_successor_leaves_none_behind_and_lets_go_what_waits_for_it(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    options = ("save_every=1000", "asked_at=30")
    run = start(slurm_cluster, tmp_path / "run", steps=100, options=options, continuation="chain")
    behind = start(slurm_cluster, tmp_path / "behind", steps=5, after=run.directory)
    run.reach(30)
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    slurm_cluster.wait_for(lambda: run.marker("done"), seconds=60, what="the end of the chain")
    assert behind.ends("COMPLETED", "FAILED", "CANCELLED") == "COMPLETED"
    assert behind.lives[0].started >= (run.lives[1].ended or time.time())
    slurm_cluster.wait_for(
        lambda: not slurm_cluster.client("squeue", "-h").strip(), seconds=30, what="an empty queue"
    )
    assert run.value == run.expected
    first, second = run.lives
    assert (first.outcome, second.outcome) == ("stopped", "done") and first.job_id != second.job_id


def test_a_second_job_on_the_same_run_is_refused(slurm_cluster: FakeCluster, tmp_path: Path) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=10_000)
    run.reach(5)
    with pytest.raises(UserError, match=f"has job {run.job_id} already"):
        start(slurm_cluster, tmp_path / "run")
    twin = slurm_cluster.client(
        "sbatch", "--parsable", str(run.directory / "submissions" / "0001" / "script.sh")
    ).strip()
    assert slurm_cluster.wait_for_state(twin, "FAILED", "COMPLETED") == "FAILED"
    assert slurm_cluster.state(run.job_id) == "RUNNING"
    assert read_status(run.directory, queue=slurm.queue()).state == "running"
    slurm_cluster.client("scancel", run.job_id)
    run.ends("CANCELLED")


@pytest.mark.slow
@pytest.mark.every_scenario
def test_a_job_of_one_node_whose_nodes_all_fail_alike_ends_with_the_reason(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    checks = failing_on("fake*", tmp_path)
    run = start(slurm_cluster, tmp_path / "run", steps=20, nodes=1, preflight=checks)
    assert run.ends("COMPLETED", "FAILED") == "FAILED", run.log()
    assert [life.outcome for life in run.lives] == ["excluded", "excluded", "failed"]
    assert "life after life" in run.lives[-1].reason and "this node is bad" in run.lives[-1].reason


@pytest.mark.slow
def test_a_spare_node_takes_the_place_of_a_bad_one_at_once(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=20, preflight=failing_on("fake1", tmp_path), spares=1)
    assert run.ends("COMPLETED", "FAILED") == "COMPLETED", run.log()
    (life,) = run.lives
    assert len(life.nodes) == 3 and life.outcome == "done" and list(life.excluded) == ["fake1"]
    assert not list((run.directory / "logs").glob("*fake1*"))


@pytest.mark.parametrize("warned", [0, 2], ids=["first", "last"])
def test_an_array_runs_each_of_its_tasks_once_and_goes_on_after_a_warning(
    slurm_cluster: FakeCluster, tmp_path: Path, warned: int
) -> None:
    run = start_array(slurm_cluster, tmp_path / "array", tasks=3, waits=warned)
    others = [task for task in range(3) if task != warned]
    slurm_cluster.wait_for((run.directory / "begun").exists, seconds=60, what="the task that waits")
    for task in others:
        slurm_cluster.wait_for_state(f"{run.job_id}_{task}", "COMPLETED")
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", f"{run.job_id}_{warned}")
    slurm_cluster.wait_for(run.has_ended, seconds=60, what="three tasks")
    assert [(run.directory / f"output-{number}").read_text() for number in range(3)] == ["shard\n"] * 3
    lives = [History(run.directory / f"task-{number:04d}").lives() for number in range(3)]
    outcomes = [["stopped", "done"] if task == warned else ["done"] for task in range(3)]
    assert [[life.outcome for life in task] for task in lives] == outcomes
    for task in others:  # SLURM gives the last task the array's own id, by which it requeues them all
        told = slurm_cluster.client("scontrol", "show", "job", f"{run.job_id}_{task}")
        assert "Restarts=0 " in told, f"task {task} was done, and began again"
    assert read_status(run.directory, queue=slurm.queue()).state == "done"


@pytest.mark.slow
@pytest.mark.every_scenario
def test_an_array_goes_on_as_chains_of_its_tasks(slurm_cluster: FakeCluster, tmp_path: Path) -> None:
    run = start_array(slurm_cluster, tmp_path / "array", tasks=3, continuation="chain")
    slurm_cluster.wait_for((run.directory / "begun").exists, seconds=60, what="the first task")
    others = [run.directory / f"task-{number:04d}" / "done" for number in (1, 2)]
    slurm_cluster.wait_for(lambda: all(path.exists() for path in others), seconds=60, what="the others")
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", f"{run.job_id}_0")
    slurm_cluster.wait_for(run.has_ended, seconds=60, what="three tasks")
    slurm_cluster.wait_for(lambda: not slurm_cluster.waiting(), seconds=30, what="an empty queue")
    lives = [History(run.directory / f"task-{number:04d}").lives() for number in range(3)]
    assert [[life.outcome for life in task] for task in lives] == [["stopped", "done"], ["done"], ["done"]]
    assert read_status(run.directory, queue=slurm.queue()).state == "done"


def test_an_array_tells_what_became_of_its_tasks_without_accounting(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start_array(slurm_cluster, tmp_path / "array", tasks=3)
    slurm_cluster.wait_for((run.directory / "begun").exists, seconds=60, what="the first task")
    others = [run.directory / f"task-{number:04d}" / "done" for number in (1, 2)]
    slurm_cluster.wait_for(lambda: all(path.exists() for path in others), seconds=60, what="the others")
    slurm_cluster.client("scancel", f"{run.job_id}_0")
    slurm_cluster.wait_for(
        lambda: read_status(run.directory, queue={}).state == "cancelled", seconds=60, what="the notice"
    )
    found = read_status(run.directory, queue={})
    assert found.detail.startswith("2 of 3 tasks done, 1 cancelled"), found


def test_a_pipeline_runs_its_stages_one_after_the_other(slurm_cluster: FakeCluster, tmp_path: Path) -> None:
    order = tmp_path / "order"
    jobs = start_pipeline(slurm_cluster, tmp_path, order=order)
    slurm_cluster.wait_for_state(jobs["last"], "COMPLETED", "FAILED")
    assert order.read_text().split() == ["first", "middle", "last"]
    assert start_pipeline(slurm_cluster, tmp_path, order=order) == dict.fromkeys(jobs, "done")


def test_nothing_begins_behind_a_run_that_stopped_before_its_end(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=10_000, continuation="none")
    behind = start(slurm_cluster, tmp_path / "behind", steps=5, after=run.directory)
    run.reach(20)
    slurm_cluster.client("scancel", "--signal=USR1", "--batch", run.job_id)
    assert behind.ends("COMPLETED", "FAILED", "CANCELLED") == "CANCELLED"
    assert not behind.lives and [life.outcome for life in run.lives] == ["stopped"]


@pytest.mark.slow
@pytest.mark.every_scenario
@pytest.mark.timeout(600)  # limits are whole minutes
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


@pytest.mark.slow
@pytest.mark.every_scenario
@pytest.mark.timeout(900)  # limits are whole minutes
def test_a_life_that_the_time_limit_kills_before_it_saves_costs_what_came_after_the_last_save(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    options, limits = ("asked_at=30", "deaf=1"), {"nodes": 1, "time": "00:01:00", "warning_seconds": 10}
    alone = start(slurm_cluster, tmp_path / "alone", options=options, **limits)
    chain = start(slurm_cluster, tmp_path / "chain", options=options, continuation="chain", **limits)
    assert alone.ends("TIMEOUT", "COMPLETED", "FAILED", seconds=240) == "TIMEOUT", alone.log()
    for queue in (slurm.queue(), {}):
        assert read_status(alone.directory, queue=queue).state == "timeout"
    resubmit(alone, options=options, **limits)
    assert alone.ends("COMPLETED", "FAILED") == "COMPLETED", alone.log()
    slurm_cluster.wait_for(lambda: chain.marker("done"), seconds=240, what="the chain's end")
    slurm_cluster.wait_for(lambda: not slurm_cluster.waiting(), seconds=30, what="an empty queue")
    for run in (alone, chain):
        assert run.value == run.expected
        assert [(life.outcome, life.step) for life in run.lives] == [("", -1), ("done", 20)]


@pytest.mark.slow
@pytest.mark.every_scenario
def test_a_node_that_is_drained_while_its_job_saves_takes_no_other_life(
    slurm_cluster: FakeCluster, tmp_path: Path
) -> None:
    run = start(slurm_cluster, tmp_path / "run", steps=100, options=("save_every=1000", "asked_at=10"))
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
    assert read_status(run.directory, queue=slurm.queue()).state == "done"
