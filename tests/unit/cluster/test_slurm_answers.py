"""What SLURM's commands print, in the forms of 22.05 and of newer versions."""

from __future__ import annotations

import pytest

from cluster import slurm
from cluster.launch import Attempt, Failure, first_failure

_RUNNING = {
    "job_id": 12,
    "state_reason": "None",
    "name": "first",
    "nodes": "fake[1-2]",
    "command": "/a/script.sh",
}
_PENDING = {"job_id": 14, "state_reason": "Priority", "name": "shards", "nodes": "", "restart_cnt": 0}
OLD = {
    "jobs": [
        {**_RUNNING, "array_job_id": 0, "array_task_id": None, "job_state": "RUNNING"},
        {**_PENDING, "job_id": 13, "array_job_id": 13, "array_task_id": None, "job_state": "PENDING"},
        {**_PENDING, "array_job_id": 13, "array_task_id": 0, "job_state": "PENDING"},
    ]
}


def _number(value: int, *, is_set: bool = True) -> dict[str, object]:
    return {"set": is_set, "infinite": False, "number": value}


NEW = {
    "jobs": [
        {**_RUNNING, "array_job_id": _number(0), "array_task_id": _number(0, is_set=False),
         "job_state": ["RUNNING"]},
        {**_PENDING, "job_id": 13, "array_job_id": _number(13), "array_task_id": _number(0, is_set=False),
         "job_state": ["PENDING"]},
        {**_PENDING, "array_job_id": _number(13), "array_task_id": _number(0), "job_state": ["PENDING"]},
    ]
}  # fmt: skip


@pytest.mark.parametrize("answer", [OLD, NEW], ids=["22.05", "newer"])
def test_the_queue_reads_the_same_in_old_and_new_forms(answer: dict) -> None:
    jobs = slurm.parse_queue(answer)
    assert jobs == {
        "12": slurm.QueuedJob("12", "RUNNING", script="/a/script.sh"),
        "13": slurm.QueuedJob("13", "PENDING", "Priority", "13"),  # the tasks that still wait, as one
        "14": slurm.QueuedJob("13_0", "PENDING", "Priority", "13"),
    }
    assert jobs["12"].is_alive
    assert slurm.jobs_of(["13"], jobs) == [jobs["13"], jobs["14"]] and slurm.jobs_of(["12"], jobs) == [
        jobs["12"]
    ]


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["CANCELLED", "COMPLETING"], "COMPLETING"),
        (["PENDING", "REQUEUED"], "REQUEUED"),
        (["PENDING", "REQUEUE_HOLD"], "REQUEUE_HOLD"),
        (["RUNNING", "POWER_UP_NODE"], "RUNNING"),
        ([], ""),
    ],
)
def test_a_flag_of_the_new_form_outweighs_the_base_state(words: list[str], state: str) -> None:
    entry = {"job_id": 1, "job_state": words}
    assert slurm.parse_queue({"jobs": [entry]})["1"].state == state


def test_words_say_more_than_the_reason() -> None:
    words = "launch failed requeued held"
    entry = {"job_id": 1, "job_state": "PENDING", "state_reason": "JobHeldUser", "state_description": words}
    assert slurm.parse_queue({"jobs": [entry]})["1"].reason == words


def test_a_queue_without_jobs_is_empty() -> None:
    assert slurm.parse_queue({"jobs": []}) == {} and slurm.parse_queue({}) == {}


def test_the_first_rank_that_failed_is_found_in_sruns_messages() -> None:
    lines = [
        "srun: Job step aborted: Waiting up to 12 seconds for job step to finish.\n",
        "srun: error: fake2: task 1: Exited with exit code 7\n",
        "srun: error: fake1: tasks 0,2-3: Exited with exit code 143\n",
    ]
    assert first_failure(lines) == Failure("fake2", 1, 7)
    assert first_failure(["fine\n"]) is None


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("Killed", 137),
        ("Segmentation fault (core dumped)", 139),
        ("Bus error", 135),
        ("Aborted", 134),
        ("Out Of Memory", 125),
    ],
)
def test_a_rank_that_a_signal_killed_is_the_first_and_not_its_peer_that_lost_it(
    words: str, status: int
) -> None:
    lines = [
        "srun: error: fake1: task 0: Terminated\n",
        f"srun: error: fake2: task 1: {words}\n",
        "srun: error: fake3: task 2: Exited with exit code 1\n",
    ]
    assert first_failure(lines) == Failure("fake2", 1, status)


def test_no_two_starts_of_a_run_nor_neighbouring_jobs_meet_at_one_port() -> None:
    starts = [(job, life, number) for job in range(100, 150) for life in range(1, 9) for number in (1, 2, 3)]
    ports = {Attempt(str(job), life, number).port for job, life, number in starts}
    assert len(ports) == len(starts) and min(ports) >= 20000 and max(ports) < 30000


def test_a_missing_command_is_a_clear_error() -> None:
    with pytest.raises(slurm.SlurmError, match="not installed here"):
        slurm.run_command(["no-such-slurm-command"])
