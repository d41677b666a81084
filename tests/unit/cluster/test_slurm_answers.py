"""What SLURM's commands print, in the forms of 22.05 and of newer versions."""

from __future__ import annotations

import pytest

from cluster import slurm
from cluster.launch import Attempt, Failure, failures

TABLE = """\
2501|2501|1-2%1|PENDING|JobArrayTaskLimit|N/A|(null)|/a/script.sh
2502|2502|N/A|PENDING|launch failed requeued held|2026-11-28T09:41:58|(null)|/b/x|y.sh
2503|2501|0|RUNNING|None|2026-11-28T09:11:58|(null)|/a/script.sh
2504|2504|N/A|COMPLETED|None|Unknown||(null)
2505|2505|N/A|PENDING|Dependency|N/A|afterok:2501_*(unfulfilled),afterany:2502|/c/script.sh
"""  # as 22.05 prints it


def test_the_queue_is_read_from_a_table() -> None:
    jobs = slurm.parse_queue(TABLE)
    assert jobs == {
        # the tasks that still wait, as one
        "2501": slurm.QueuedJob("2501", "PENDING", "JobArrayTaskLimit", "2501", "/a/script.sh"),
        "2502": slurm.QueuedJob(
            "2502", "PENDING", "launch failed requeued held", "", "/b/x|y.sh", "2026-11-28T09:41:58"
        ),
        "2503": slurm.QueuedJob("2501_0", "RUNNING", "", "2501", "/a/script.sh", "2026-11-28T09:11:58"),
        "2504": slurm.QueuedJob("2504", "COMPLETED", script="(null)"),
        "2505": slurm.QueuedJob(
            "2505", "PENDING", "Dependency", script="/c/script.sh", waits_for=("2501", "2502")
        ),
    }
    assert jobs["2503"].is_alive and not jobs["2504"].is_alive
    assert slurm.jobs_of(["2501"], jobs) == [jobs["2501"], jobs["2503"]]
    assert slurm.jobs_of(["2502"], jobs) == [jobs["2502"]] and slurm.parse_queue("") == {}
    with pytest.raises(slurm.SlurmError, match="instead of a job"):
        slurm.parse_queue("2504|2504|N/A|COMPLETED|None|Unknown|(null)")  # a column too few


@pytest.mark.parametrize(
    ("states", "alive"),
    [
        (
            "PENDING RUNNING CONFIGURING COMPLETING SUSPENDED REQUEUED REQUEUE_HOLD SPECIAL_EXIT STAGE_OUT",
            True,
        ),
        ("RESV_DEL_HOLD EXPEDITING", True),  # its reservation was deleted; since 25.11
        ("COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY", False),
        ("REVOKED", False),  # another cluster of the federation runs it
    ],
)
def test_whatever_has_not_ended_may_still_go_on(states: str, alive: bool) -> None:
    assert {slurm.QueuedJob("7", state).is_alive for state in states.split()} == {alive}


def test_the_ranks_that_failed_are_found_in_sruns_messages() -> None:
    lines = [
        "srun: Job step aborted: Waiting up to 12 seconds for job step to finish.\n",
        "srun: error: fake2: task 1: Exited with exit code 7\n",
        "srun: error: fake1: tasks 0,2-3: Exited with exit code 143\n",
        "srun: error: fake3: tasks 4,6-7: Exited with exit code 1\n",
    ]
    others = [Failure("fake3", rank, 1) for rank in (4, 6, 7)]
    assert failures(lines) == [Failure("fake2", 1, 7), *others]
    assert failures(["fine\n"]) == []


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
    assert failures(lines)[0] == Failure("fake2", 1, status)


def test_no_two_starts_of_a_run_nor_neighbouring_jobs_meet_at_one_port() -> None:
    starts = [(job, life, number) for job in range(100, 150) for life in range(1, 9) for number in (1, 2, 3)]
    ports = {Attempt(str(job), life, number).port for job, life, number in starts}
    assert len(ports) == len(starts) and min(ports) >= 20000 and max(ports) < 30000


def test_a_missing_command_is_a_clear_error() -> None:
    with pytest.raises(slurm.SlurmError, match="not installed here"):
        slurm.run_command(["no-such-slurm-command"])
