"""status, logs and cancel, from a run directory alone and with a queue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import slurm
from cluster.cancel import cancel_run
from cluster.cli import status
from cluster.history import History
from cluster.job import Job, write_job
from cluster.site import SiteConfig
from cluster.slurm import QueuedJob
from cluster.status import find_runs, read_status
from cluster.tables import print_status
from coatnet.config import UserError
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.run_directory import RunDirectory

Program = Callable[[str, str], None]
# Others' programs read them: names are added at the end, and none goes.
_NAMES_IN_JSON = [
    "directory", "state", "detail", "job_id", "nodes", "lives", "step", "samples_seen", "total_samples",
    "images_per_second", "remaining_seconds", "lost_seconds", "last_error", "next_action", "expected_start",
]  # fmt: skip


def queued(state: str, *, job_id: str = "7", reason: str = "") -> dict[str, QueuedJob]:
    return {job_id: QueuedJob(job_id, state, reason)}


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        (queued("RUNNING"), "running"),
        (queued("COMPLETING"), "completing"),
        (queued("PENDING"), "requeued"),
        ({}, "lost"),
    ],
)
def test_the_queue_decides_while_a_job_lives(run: Path, queue: dict[str, QueuedJob], expected: str) -> None:
    assert read_status(run, queue=queue).state == expected


@pytest.mark.parametrize("marker", ["done", "cancelled", "held"])
def test_a_marker_outweighs_the_queue(run: Path, marker: str) -> None:
    RunDirectory(run).mark(marker, reason="three lives")
    for state in ("COMPLETING",) if marker == "cancelled" else ("COMPLETING", "RUNNING"):
        found = read_status(run, queue=queued(state))
        assert (found.state, found.detail) == (marker, "three lives")


def test_a_job_that_outlived_its_cancelling_is_to_be_cancelled_again(run: Path) -> None:
    RunDirectory(run).mark("cancelled", reason="coatnet cancel")
    for state, more in (("RUNNING", ", but job 7 is RUNNING: cancel it again"), ("CANCELLED", "")):
        found = read_status(run, queue=queued(state))
        assert (found.state, found.detail) == ("cancelled", f"coatnet cancel{more}")


def test_a_failed_life_tells_its_reason(run: Path) -> None:
    history = History(run)
    history.end(history.lives()[0], outcome="failed", reason="a rank on n1 ended: boom", tries=3, excluded={})
    found = read_status(run, queue={})
    assert found.state == "failed" and "boom" in found.last_error


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"])
def test_a_life_whose_script_was_killed_has_the_state_that_slurm_gives_it(run: Path, state: str) -> None:
    (run / "logs" / "job-7.log").write_text("srun on n1\n")
    found = read_status(run, queue=queued(state, reason="NonZeroExitCode"))
    assert found.state == state.lower()
    told = "; its log ends: srun on n1" if state == "FAILED" else ""
    assert found.detail == f"life 1 has no end; SLURM says {state} (NonZeroExitCode){told}"


def test_why_a_job_could_not_even_begin_stands_in_its_log(run: Path) -> None:
    history = History(run)
    history.end(history.lives()[0], outcome="failed", reason="boom", tries=1, excluded={})
    history.note("submitted", job_id="8", folder="0002", lives=1)
    assert read_status(run, queue=queued("PENDING", job_id="8")).state == "pending"
    (run / "logs" / "job-8.log").write_text("exec: /moved/python: not found\n\n")
    found = read_status(run, queue=queued("FAILED", job_id="8", reason="NonZeroExitCode"))
    assert found.state == "failed" and found.detail == (
        "never started; SLURM says FAILED (NonZeroExitCode); its log ends: exec: /moved/python: not found"
    )
    found = read_status(run, queue={})
    assert found.state == "lost" and found.detail.endswith("its log ends: exec: /moved/python: not found")
    assert read_status(run, queue=None).state == "failed", "off the cluster it may wait"


BEGIN = "2026-11-26 15:15:30 life 1 on n1, from step 0\n"
NOTICE = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-26T15:15:39{} ***\n"


@pytest.mark.parametrize("outcome", ["", "ended"])
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("", "cancelled"),
        (" DUE to SIGNAL Terminated", "cancelled"),
        (" DUE TO TIME LIMIT", "timeout"),
        (" DUE TO PREEMPTION", "preempted"),
        (" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "node_fail"),
        (" DUE TO JOB REQUEUE", "requeued"),
    ],
)
def test_how_slurm_ended_a_job_stands_in_its_log_where_nothing_else_knows(
    run: Path, reason: str, expected: str, outcome: str
) -> None:
    history = History(run)
    if outcome:
        history.end(history.lives()[0], outcome=outcome, reason="SLURM", tries=1, excluded={})
    (run / "logs" / "job-7.log").write_text(f"{BEGIN}{NOTICE.format(reason)}srun: forcing it\n")
    found = read_status(run, queue={})
    told = "SLURM" if outcome else "life 1 has no end; so the job's log says"
    assert (found.state, found.detail) == (expected, "scancel" if expected == "cancelled" else told)


def test_a_notice_of_an_earlier_life_says_nothing_of_the_last_one(run: Path) -> None:
    (run / "logs" / "job-7.log").write_text(NOTICE.format(" DUE TO PREEMPTION") + BEGIN)
    assert read_status(run, queue={}).state == "lost"


def test_a_job_that_is_cancelled_while_it_waits_for_its_next_life_is_cancelled(run: Path) -> None:
    history = History(run)
    history.end(history.lives()[0], outcome="stopped", reason="saved", tries=1, excluded={})
    found = read_status(run, queue=queued("CANCELLED"))
    assert (found.state, found.detail) == ("cancelled", "scancel")


def test_a_failed_run_is_no_cancelled_one_although_its_successor_was_taken_out_of_the_queue(
    run: Path,
) -> None:
    history = History(run)
    history.end(history.lives()[0], outcome="failed", reason="boom", tries=1, excluded={})
    history.note("successor", job_id="8")
    assert read_status(run, queue=queued("CANCELLED", job_id="8")).state == "failed"


def test_of_several_jobs_the_newest_tells_the_state(run: Path) -> None:
    History(run).note("submitted", job_id="5", folder="0002", lives=1)  # ids may wrap around
    known = {**queued("FAILED", job_id="5"), **queued("CANCELLED", job_id="7")}
    assert read_status(run, queue=known).state == "failed"


@pytest.mark.parametrize("text", ["", "[]", "3", '"x"', "{", "\0", "null"])
@pytest.mark.parametrize("marker", ["done", "cancelled", "held"])
def test_a_marker_counts_whatever_it_holds(run: Path, marker: str, text: str) -> None:
    (run / marker).write_text(text)
    assert read_status(run, queue={}).state == marker


def test_garbage_in_metrics_and_account_is_passed_over(run: Path) -> None:
    rows = [
        "[]",
        "3",
        "{",
        '{"samples_seen": "x", "time": 1}',
        '{"time": 2}',
        '{"samples_seen": 8, "time": null}',
    ]
    rows += ['{"samples_seen": NaN, "time": 4}', '{"samples_seen": 1e999, "time": 4}']
    rows += ['{"samples_seen": 800, "time": 5, "progress": 0.5}']
    rows += ['{"samples_seen": 800, "time": 6, "progress": 1e-320, "images_per_second": [1]}']
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    account = RunDirectory(run).account
    account.mkdir()
    (account / "rank-00000.jsonl").write_text('[]\n{}\n{"life": "a", "rank": 0}\n{"seconds": 1}\n')
    found = read_status(run, queue={})
    assert (found.samples_seen, found.total_samples) == (800, 1600)


@pytest.mark.parametrize(
    ("times", "rate", "remaining"), [([-5, 1, 11], 80.0, 10.0), ([1, 1, 1], None, None), ([1], None, None)]
)
def test_the_rate_is_that_of_this_life_and_tells_when_the_run_ends(
    run: Path, times: list[float], rate: float | None, remaining: float | None
) -> None:
    began = History(run).lives()[0].started
    rows = [
        {"samples_seen": 800 * number, "time": began + at, "progress": number / 4}
        for number, at in enumerate(times, start=4 - len(times))
    ]
    rows.append({"time": began + times[-1], "samples_seen": 2400, "evaluate/top1": 0.5})  # tells no progress
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_status(run, queue=queued("RUNNING"))
    assert (found.samples_seen, found.total_samples) == (2400, 3200)
    assert (found.images_per_second, found.remaining_seconds) == (rate, remaining)
    assert read_status(run, queue=queued("SUSPENDED")).remaining_seconds is None


def test_a_clock_that_went_backwards_loses_no_negative_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = TimeAccount(RunDirectory(run).account, rank=0, life=1)
    with account.measure("compute"):
        time.sleep(0.01)
    account.flush(samples_seen=8)
    monkeypatch.setattr("cluster.status.time", SimpleNamespace(time=lambda: 1.0))
    assert read_status(run, queue=queued("RUNNING")).lost_seconds == 0.0


def test_runs_are_found_below_a_folder(run: Path) -> None:
    assert find_runs([run.parents[0]]) == [run] and find_runs([run]) == [run]
    assert find_runs([run.parents[1]]) == [run], "a pipeline's stages lie in a folder of their own"


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_of_runs_fits_the_terminal(
    run: Path, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"time": time.time(), "samples_seen": 1_281_167, "progress": 0.25}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    monkeypatch.setenv("COLUMNS", columns)
    print_status([read_status(run, queue=queued("COMPLETING"))])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "completing" in line]
    assert len(row) <= int(columns) and "25.0%" in row


def test_cancelling_marks_first_and_ends_pending_jobs_before_running_ones(
    run: Path, tmp_path: Path, program: Program
) -> None:
    for job_id in ("8", "6"):
        History(run).note("successor", job_id=job_id)
    called = tmp_path / "called"
    states = {"7": "RUNNING", "8": "PENDING", "9": "RUNNING", "6": "TIMEOUT"}
    lines = [f"echo '{job}|{job}|N/A|{state}|None|N/A|(null)|'" for job, state in states.items()]
    program("squeue", "\n".join(lines))
    program("scancel", f'test -e {run}/cancelled && echo "$1" >> {called}')
    assert slurm.available()
    assert cancel_run(run) == ["8", "7"]
    assert called.read_text().split() == ["8", "7"]


def test_a_finished_run_or_another_folder_cannot_be_cancelled(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was never submitted"):
        cancel_run(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        cancel_run(tmp_path / "nowhere")
    RunDirectory(run).mark("done")
    with pytest.raises(UserError, match="is done"):
        cancel_run(run)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("echo unreachable >&2; exit 1", "squeue: unreachable"),
        ("echo garbage", "squeue printed 'garbage' instead of a job"),
    ],
)
def test_status_reads_the_directories_when_the_queue_says_nothing_of_use(
    line: str,
    said: str,
    run: Path,
    program: Program,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program("squeue", line)
    status([run], as_json=True)
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["detail"]) == ("lost", "life 1 has no end")
    status([run])
    assert said in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        status([tmp_path / "nowhere"])


def test_a_run_that_cannot_be_read_hides_no_other(
    run: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    program("squeue", "exit 1")
    (run.parent / "second" / "lives.jsonl").mkdir(parents=True)
    status([run.parent], as_json=True)
    found = {Path(one["directory"]).name: one for one in json.loads(capsys.readouterr().out)}
    assert found["first"]["state"] == "lost"
    assert list(found["first"]) == list(found["second"]) == _NAMES_IN_JSON
    assert found["second"]["state"] == "unreadable"
    assert found["second"]["detail"] == f"{run.parent}/second/lives.jsonl: Is a directory"
    assert found["second"]["next_action"] == "look at its permissions and its disk"


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("PENDING", "", ""),
        ("PENDING", "Priority", "Priority"),
        ("PENDING", "BeginTime", "after a requeue that takes some two minutes"),
        ("PENDING", "JobHeldUser", "JobHeldUser: held; let it begin: scontrol release 7"),
        ("PENDING", "JobHeldAdmin", "JobHeldAdmin: held by an administrator, who can say why"),
        ("REQUEUE_HOLD", "", "by somebody or by a rule of the site; let it begin: scontrol release 7"),
        ("PENDING", "job requeued in held state", "a rule of the site; let it begin: scontrol release 7"),
        ("SPECIAL_EXIT", "", "let it begin: scontrol release 7"),
        (
            "REQUEUE_HOLD",
            "launch failure limit exceeded requeued held",
            "can see why; then: scontrol release 7",
        ),
        (
            "RESV_DEL_HOLD",
            "Reservation spring was deleted",
            "held for ever; coatnet cancel {run}, then submit to another or without one",
        ),
        (
            "PENDING",
            "QOSNotAllowed",
            "not to be used here by you any more; coatnet cancel {run}, then submit with another",
        ),
        ("PENDING", "AssocMaxCpuPerNode", "then submit with less"),
        ("PENDING", "Reservation", "Reservation"),
        ("PENDING", "launch failed requeued held", "can see why; then: scontrol release 7"),
        ("PENDING", "PartitionTimeLimit", "then submit with less"),
        ("PENDING", "QOSMaxWallDurationPerJobLimit", "then submit with less"),
        (
            "PENDING",
            "PartitionConfig",
            "no node there has what it asks for; coatnet cancel {run}, then submit anew",
        ),
        ("PENDING", "DependencyNeverSatisfied", "coatnet cancel {run}, then submit again"),
    ],
)
def test_a_job_that_waits_in_vain_is_told_with_the_remedy(
    run: Path, state: str, reason: str, words: str
) -> None:
    detail = read_status(run, queue=queued(state, reason=reason)).detail
    assert detail == words or (words and detail.endswith(words.format(run=run)))


def test_what_one_of_several_partitions_will_not_take_another_may(run: Path) -> None:
    for number, partition in enumerate((None, "gpu", "gpu,short"), start=1):
        folder = run / "submissions" / f"{number:04d}"
        folder.mkdir(parents=True)
        job = Job("run", str(run), ["pretrain"], site=SiteConfig(partition=partition))
        write_job(job, folder / "job.json")
        told = read_status(run, queue=queued("PENDING", reason="PartitionTimeLimit")).detail
        assert ("cancel" in told) is (partition != "gpu,short") and told.startswith("PartitionTimeLimit")


def test_what_slurm_took_out_of_the_queue_says_why(tmp_path: Path) -> None:
    History(tmp_path).note("submitted", job_id="7", folder="0001", lives=0)
    found = read_status(tmp_path, queue=queued("CANCELLED", reason="DependencyNeverSatisfied"))
    assert found.detail == "never started; SLURM says CANCELLED (what it waited for did not end well)"


@pytest.mark.parametrize(
    ("state", "start", "told"),
    [
        ("PENDING", "2999-01-01T09:41:58", "2999-01-01T09:41:58"),
        ("PENDING", "2001-01-01T09:41:58", None),  # looked at before the scheduler's next turn
        ("PENDING", "", None),
        ("RUNNING", "2999-01-01T09:41:58", None),  # by a clock that differs from ours
    ],
)
def test_a_job_that_waits_is_told_with_the_time_at_which_slurm_expects_it_to_begin(
    run: Path, state: str, start: str, told: str | None
) -> None:
    assert read_status(run, queue={"7": QueuedJob("7", state, start=start)}).expected_start == told
    assert read_status(run, queue={}).expected_start is None


def test_a_job_of_a_colleague_is_his_to_cancel(run: Path, program: Program) -> None:
    program("squeue", "echo '7|7|N/A|RUNNING|None|N/A|(null)|'")
    program(
        "scancel", "echo 'scancel: error: Kill job error on job id 7: Access/permission denied' >&2; exit 1"
    )
    with pytest.raises(UserError, match=r"job id 7: Access/permission denied; its owner can cancel it$"):
        cancel_run(run)


def test_a_run_that_is_marked_while_the_queue_is_away_is_to_be_cancelled_again(
    run: Path, program: Program
) -> None:
    program("squeue", "echo unreachable >&2; exit 1")
    with pytest.raises(UserError, match=r"is marked as cancelled, but not .* unreachable; cancel it again"):
        cancel_run(run)
    assert read_status(run, queue={}).state == "cancelled"
