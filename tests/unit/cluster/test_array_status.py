"""What `coatnet status` tells of a job array and of its tasks, each of which is a run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.array import task_folder, task_folders
from cluster.history import History
from cluster.job import Job, write_job
from cluster.slurm import QueuedJob
from cluster.status import find_runs, read_status
from coatnet.runtime.run_directory import RunDirectory

# what SLURM leaves in a job's log, behind the beginning of a life
ENDED = "- - life 1 on n1\nslurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-26T15:15:39{} ***\n"


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """Four tasks were submitted as job 7, of which three began: lives without an end."""
    History(tmp_path).note("submitted", job_id="7", folder="0001", lives=0)
    (tmp_path / "submissions" / "0001").mkdir(parents=True)
    job = Job("parts", str(tmp_path), ["shard"], array=4)
    write_job(job, tmp_path / "submissions" / "0001" / "job.json")
    (tmp_path / "logs").mkdir()
    for number in range(3):
        task = tmp_path / f"task-{number:04d}"
        task.mkdir()
        History(task).begin(job_id=f"{8 + number}", nodes=["n1"], step=-1)
    return tmp_path


def end(task: Path, outcome: str, reason: str) -> None:
    history = History(task)
    history.end(history.lives()[-1], outcome=outcome, reason=reason, tries=1, excluded={})


def test_an_array_without_a_job_tells_what_became_of_each_task(array: Path) -> None:
    RunDirectory(array / "task-0000").mark("done")
    end(array / "task-0001", "failed", "a rank on n1 ended: boom")
    found = read_status(array, queue={})
    assert found.state == "lost", "a task without an end may still run elsewhere"
    (array / "logs" / "job-7_2.log").write_text(ENDED.format(" DUE TO TIME LIMIT"))
    found = read_status(array, queue={})
    assert found.state == "failed"
    assert found.detail == (
        "1 of 4 tasks done, 1 failed, 1 timeout, 1 never began (task 1: a rank on n1 ended: boom); "
        "submit again for the others"
    )
    assert read_status(array / "task-0002", queue={}).state == "timeout"


def test_an_array_tells_the_first_trouble_that_has_a_reason(array: Path) -> None:
    for number, reason in enumerate(("", "boom", "bang")):
        end(array / f"task-{number:04d}", "failed", reason)
    assert "(task 1: boom)" in read_status(array, queue={}).detail


def test_an_array_tells_the_trouble_of_the_task_that_it_is_named_by_and_leaves_out_what_did_not_happen(
    array: Path,
) -> None:
    (array / "submissions" / "0001" / "job.json").write_text('{"array": 3}')
    for number, outcome in enumerate(("node_fail", "failed", "failed")):
        end(array / f"task-{number:04d}", outcome, f"trouble {number}")
    assert read_status(array / "task-0000", queue={}).detail == "trouble 0"
    found = read_status(array, queue={})
    assert found.state == "failed"
    assert found.detail.startswith("0 of 3 tasks done, ") and "never began" not in found.detail
    assert found.detail.endswith(" (task 1: trouble 1); submit again for the others")


def test_the_successors_of_tasks_are_jobs_of_the_array(array: Path) -> None:
    History(array / "task-0001").note("successor", job_id="20")
    held = {"20": QueuedJob("20_1", "PENDING", "JobHeldUser", "20")}
    assert read_status(array, queue=held).detail == "JobHeldUser: held; let it begin: scontrol release 20"
    waits = {"20": QueuedJob("20_1", "PENDING", "Dependency", "20")}
    assert read_status(array, queue=waits).state == "pending"
    runs = {"22": QueuedJob("20_1", "RUNNING", "", "20"), **waits}
    found = read_status(array, queue=runs)
    assert (found.state, found.job_id) == ("running", "20_1")
    (array / "logs" / "job-20_1.log").write_text(ENDED.format(" DUE TO TIME LIMIT"))
    assert read_status(array / "task-0001", queue={}).state == "timeout"
    History(array / "task-0001").note("successor", job_id="21")  # which never began
    assert read_status(array / "task-0001", queue={}).state == "timeout"


def test_a_folder_that_only_looks_like_a_task_is_none(array: Path) -> None:
    (array / "task-old").mkdir()
    (array / "task-0001" / "lives.jsonl").rename(array / "task-old" / "lives.jsonl")
    assert [folder.name for folder in task_folders(array)] == ["task-0000", "task-0002"]
    assert task_folder(array, 2) == array / "task-0002"


def test_an_array_that_was_cancelled_is_no_ended_one(array: Path) -> None:
    for number in range(3):
        end(array / f"task-{number:04d}", "ended", "SLURM ended the job")
        (array / "logs" / f"job-7_{number}.log").write_text(ENDED.format(""))
    assert read_status(array, queue={}).state == "cancelled"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"array": "x"}'])
def test_a_broken_job_file_leaves_an_array_the_tasks_that_began(array: Path, text: str) -> None:
    (array / "submissions" / "0001" / "job.json").write_text(text)
    RunDirectory(array / "task-0000").mark("done")
    assert read_status(array, queue={}).detail.startswith("1 of 3 tasks done, 2 lost")


def test_tasks_are_found_where_their_array_is_given(array: Path) -> None:
    tasks = [array / f"task-{number:04d}" for number in range(3)]
    assert find_runs([array]) == [array, *tasks] and find_runs(tasks[:1]) == tasks[:1]
    assert array in find_runs([array.parent]) and not {*tasks} & {*find_runs([array.parent])}


def test_the_task_that_has_the_arrays_own_id_is_not_told_by_the_others(array: Path) -> None:
    task = array / "task-0003"
    task.mkdir()
    History(task).begin(job_id="7", nodes=["n1"], step=-1)  # SLURM gives it to the last that begins
    end(task, "failed", "boom")
    queue = {"8": QueuedJob("7_0", "RUNNING", "", "7"), "7": QueuedJob("7_3", "FAILED", "", "7")}
    assert (read_status(task, queue=queue).state, read_status(task, queue=queue).job_id) == ("failed", "7_3")
    assert read_status(array, queue=queue).state == "running"


def test_an_array_that_failed_tells_it_by_its_tasks_and_not_by_the_log_of_one(array: Path) -> None:
    for number in range(3):
        end(array / f"task-{number:04d}", "failed", "boom")
    (array / "logs" / "job-7_2.log").write_text("try 1: fail: boom\n")
    queue = {"10": QueuedJob("7_2", "FAILED", "NonZeroExitCode", "7")}
    assert read_status(array, queue=queue).detail == (
        "0 of 4 tasks done, 3 failed, 1 never began (task 0: boom); submit again for the others"
    )
