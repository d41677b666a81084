"""What became of runs: read from their directories, sharpened by the queue where there is one.

Works off the cluster too: then a run whose last life never ended is shown as lost rather than running.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.array import is_task, job_ids, log_names, task_folders, task_number
from cluster.history import LIVES_FILE, SUPERVISOR, History, Life, was_submitted
from cluster.job import JOB_FILES, filed_job
from cluster.notice import ending_notice
from cluster.progress import last_line, last_records, newest_step
from cluster.run_jobs import jobs_of_run
from cluster.slurm import QueuedJob
from cluster.waiting import why_it_waits
from coatnet.config.plain_text import is_number, number_of
from coatnet.runtime.lease import is_held
from coatnet.runtime.lives import LifeAccount, add_up, read_lives
from coatnet.runtime.run_directory import IDENTITY, RunDirectory

_RATE_RECORDS = 50
_EVENT_RECORDS = 200
_PRODUCTIVE = ("compute", "communication", "data_wait", "evaluation", "checkpoint", "compile")
_DEPTH = 2  # below a folder, where the runs of a pipeline lie
_OF_A_RUN = {
    "account", "checkpoints", "events", "lease", "logs", "preflight", "submissions", "tensorboard",
}  # fmt: skip
_MOST_RANKS = 16  # whose accounts stand for all: of thousands each has a file
_FINAL_MARKERS = ("done", "cancelled", "held")
_OF_LIVES = ("start", "resume", "ended")  # events by which a life begins, and ends by an error
_LOG_CHARACTERS = 200
_LAST_WORDS_SECONDS = 60.0  # SLURM's KillWait, within which ranks save, is usually half of it
# The first of these that a task is in is the array's: what may still go on, then what somebody must mend.
_OF_TASKS = (
    "lost", "requeued", "waiting", "stopped", "failed", "held", "out_of_memory", "node_fail", "timeout",
    "preempted", "cancelled",
)  # fmt: skip
_WORDS = {"DependencyNeverSatisfied": "what it waited for did not end well"}
_NEXT = {
    "held": "mend it, then submit again with --release",
    "cancelled": "to go on, submit again with --release",
    "failed": "mend it, then submit again",
    "out_of_memory": "ask for more memory, then submit again",
    "unreadable": "look at its permissions and its disk",
    **dict.fromkeys(
        ("stopped", "ended", "lost", "timeout", "deadline", "preempted", "node_fail", "boot_fail"),
        "submit again",
    ),
}
_WAITING = {"pending", "requeued", "requeue_hold", "special_exit", "resv_del_hold"}


@dataclass(frozen=True)
class RunStatus:
    """One line of `coatnet status`.

    Args:
        state: done, held, cancelled, running, pending, requeued, waiting, stopped, failed, ended, lost or
            unreadable; interrupted, of a run that was started by hand; or SLURM's own word.
        lives: how often it began, by its history or, of a run that was started by hand, its time account.
        detail: why, in a few words.
        next_action: what somebody has to do for the run to go on, where `detail` does not say it.
        step: newest committed checkpoint's.
        lost_seconds: wall time since the first life began that no rank spent on the run's own work.
        expected_start: when a job that waits is to begin, by SLURM's estimate; as 2026-11-28T09:41:58.
    """

    directory: str
    state: str
    detail: str
    job_id: str = ""
    nodes: list[str] = field(default_factory=list)
    lives: int = 0
    step: int | None = None
    samples_seen: int | None = None
    total_samples: int | None = None
    images_per_second: float | None = None
    remaining_seconds: float | None = None
    lost_seconds: float | None = None
    last_error: str = ""
    next_action: str = ""
    expected_start: str | None = None


def find_runs(roots: Sequence[Path]) -> list[Path]:
    """Return every run directory at `roots` or up to two folders below.

    Tasks of an array are runs of their own where the array itself was given. A folder that cannot be entered
    may be a run, but for those inside of one.
    """
    found = {path for root in roots for path in _runs(root, depth=_DEPTH)}
    return sorted(path for path in found if not is_task(path) or {path, path.parent} & set(roots))


def _runs(path: Path, *, depth: int, inside: bool = False) -> Iterator[Path]:
    """Go through the runs at a folder and below; `inside` another one."""
    is_run = any(os.path.exists(path / name) for name in (LIVES_FILE, IDENTITY)) or any(path.glob(JOB_FILES))
    if is_run or (not inside and _is_closed(path)):
        yield path
    folders = _folders(path) if depth else []
    for name in folders if not is_run else set(folders) - _OF_A_RUN:
        yield from _runs(path / name, depth=depth - 1, inside=is_run)


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in one, and of links, which may lead to some; asks of no file."""
    try:
        with os.scandir(path) as entries:
            return [one.name for one in entries if one.is_dir(follow_symlinks=False) or one.is_symlink()]
    except OSError:
        return []


def _is_closed(path: Path) -> bool:
    """Return whether this is a folder that cannot be entered."""
    try:
        os.stat(f"{path}/.")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False


def read_status(directory: Path, *, queue: Mapping[str, QueuedJob] | None) -> RunStatus:
    """Return what is known of one run.

    Args:
        queue: the jobs that SLURM knows; None where it does not answer, as off the cluster.
    """
    lives = History(directory).lives()
    job = _job(directory, queue or {})
    run = RunDirectory(directory)
    by_hand = run.identity.exists() and not was_submitted(directory)
    state, detail = _by_hand(run) if by_hand else _submitted(run, job, queue=queue)
    accounts = read_lives(run.account, most_ranks=_MOST_RANKS)
    records = _records(run)
    seen = int(records[-1]["samples_seen"]) if records else None
    total = _total_samples(records)
    rate = _own_rate(records) if by_hand else _rate(records, since=lives[-1].started if lives else 0.0)
    remaining = (total - seen) / rate if total and seen is not None and rate and state == "running" else None
    step = newest_step(directory)
    is_told = by_hand or queue is None or "submit" in detail
    return RunStatus(
        directory=str(directory),
        state=state,
        detail=detail,
        job_id=job.job_id if job else (lives[-1].job_id if lives else ""),
        nodes=lives[-1].nodes if lives else [],
        lives=len(accounts if by_hand else lives),
        step=step if step >= 0 else None,
        samples_seen=seen,
        total_samples=total,
        images_per_second=rate,
        remaining_seconds=remaining,
        lost_seconds=_lost_seconds(accounts, lives, running=state == "running"),
        last_error=_last_error(run, lives),
        next_action="" if is_told else _NEXT.get(state, ""),
        expected_start=_expected_start(job) if state in _WAITING else None,
    )


def status_or_trouble(directory: Path, *, queue: Mapping[str, QueuedJob] | None) -> RunStatus:
    """Return what is known of one run, or why nothing is: one that cannot be read hides no other."""
    try:
        return read_status(directory, queue=queue)
    except OSError as error:
        why = f"{error.filename or directory}: {error.strerror}"
        return RunStatus(str(directory), "unreadable", why, next_action=_NEXT["unreadable"])


def has_finished(directory: Path) -> bool:
    """Return whether nothing more will come of a run by itself, by what its directory says; asks no queue."""
    run, history = RunDirectory(directory), History(directory)
    lives = history.lives()
    if _has_words_left(directory, lives):
        return False
    if any(run.marker(name) is not None for name in _FINAL_MARKERS):
        return True
    filed = filed_job(directory)  # what cannot be read may go on by itself, and is waited for
    goes_on = filed is None or filed.site.continuation != "none"
    final = {"failed", "cancelled"} if goes_on else {"failed", "cancelled", "stopped"}
    return _state(run, lives, None)[0] in final and not history.awaits_a_life()


def _has_words_left(directory: Path, lives: Sequence[Life]) -> bool:
    """Return whether the batch script has still to say how a life ends, which ranks and SLURM tell before it.

    One that was killed never does.
    """
    if not lives or lives[-1].ended is not None:
        return False
    try:
        written = (directory / "logs" / f"job-{lives[-1].job_id}.log").stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - written < _LAST_WORDS_SECONDS


def _job(directory: Path, queue: Mapping[str, QueuedJob]) -> QueuedJob | None:
    known = jobs_of_run(directory, queue)
    alive = sorted((job for job in known if job.is_alive), key=lambda job: job.state != "RUNNING")
    return next(iter(alive or known[-1:]), None)


def _expected_start(job: QueuedJob | None) -> str | None:
    """Return when a job that waits is to begin; what lies behind us is no expectation."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    return job.start if job is not None and job.start > now else None


def _submitted(
    run: RunDirectory, job: QueuedJob | None, *, queue: Mapping[str, QueuedJob] | None
) -> tuple[str, str]:
    """Tell the state of a run that was submitted, and why."""
    history = History(run.path)
    # what an earlier submission came to says nothing of the last one, if SLURM knows of that
    lives = [] if queue is not None and history.awaits_a_life() else history.lives()
    state, detail = _state(run, lives, job)
    if job is not None and state in _WAITING:
        detail = why_it_waits(run.path, job, queue=queue or {})
    if state == "lost" and queue is not None:
        detail += ", and SLURM knows no job of this run"
    if state in {"failed", "lost"} and not (lives and lives[-1].outcome) and not task_folders(run.path):
        detail += _end_of_log(run.path, job)
    return state, detail


def _state(run: RunDirectory, lives: Sequence[Life], job: QueuedJob | None) -> tuple[str, str]:
    for name in _FINAL_MARKERS:
        found = run.marker(name)
        if found is not None:
            reason = str(found.get("reason", ""))
            if name == "cancelled" and job is not None and job.is_alive and job.state != "COMPLETING":
                reason += f", but job {job.job_id} is {job.state}: cancel it again"  # SLURM was away
            return name, reason
    if job is not None and job.is_alive:
        state = "requeued" if job.state == "PENDING" and lives else job.state.lower()
        return state, job.reason
    tasks = task_folders(run.path)
    if tasks:
        return _array_state(run.path, tasks)
    last = lives[-1] if lives else None
    if last is not None and last.outcome not in {"", "ended"}:
        if job is not None and job.state == "CANCELLED" and last.outcome != "failed":
            return "cancelled", "scancel"  # while it waited for its next life
        return "waiting" if last.outcome == "excluded" else last.outcome, last.reason
    ended = job.state.lower() if job is not None else _noticed(run, last)
    if last is not None and last.outcome:
        return ended or "ended", "scancel" if ended == "cancelled" else last.reason
    began = f"life {last.number} has no end" if last is not None else "never started"
    if job is not None:  # its batch script was killed, or could not even begin
        why = f" ({_WORDS.get(job.reason, job.reason)})" if job.reason else ""
        return ended, f"{began}; SLURM says {job.state}{why}"
    if ended:
        return ended, "scancel" if ended == "cancelled" else f"{began}; so the job's log says"
    return "lost", began


def _array_state(directory: Path, tasks: Sequence[Path]) -> tuple[str, str]:
    """Return the array's state and how many of its tasks are in which, with the first trouble's reason."""
    found = [(task_number(task), *_state(RunDirectory(task), History(task).lives(), None)) for task in tasks]
    counts = Counter(state for _, state, _ in found)
    filed = filed_job(directory)
    total = max(filed.array if filed else 0, len(found))
    done = counts.pop("done", 0)
    words = [f"{done} of {number_of(total, 'task')} done"]
    words += [f"{count} {state}" for state, count in counts.items()]
    if total > len(found):
        words.append(f"{total - len(found)} never began")
    state = next((one for one in _OF_TASKS if counts[one]), "ended")
    reasons = [f"task {number}: {reason}" for number, one, reason in found if one == state and reason]
    reason = f" ({reasons[0]})" if reasons else ""
    return state, f"{', '.join(words)}{reason}; submit again for the others"


def _by_hand(run: RunDirectory) -> tuple[str, str]:
    """Tell the state of a run that was never submitted; its lease says whether it is under way."""
    for name in _FINAL_MARKERS:
        if run.marker(name) is not None:
            return name, ""
    if is_held(run.path):
        return "running", ""
    if run.marker("stopped") is not None:
        return "stopped", "it was told to; the same command goes on"
    error = _own_error(run)
    if error:
        return "failed", f"{error}; mend that, then the same command goes on"
    return "interrupted", "it was killed; the same command goes on"


def _own_error(run: RunDirectory) -> str:
    """Return by what error the last life of a run ended; empty where it did not."""
    files = (run.events, *run.path.glob("events/rank-*.jsonl"))
    events = [
        event
        for file in files
        for event in last_records(file, count=_EVENT_RECORDS)
        if event.get("kind") in _OF_LIVES and is_number(event.get("time"))
    ]
    last = max(events, key=lambda event: event["time"], default={})
    return str(last.get("reason", ""))  # which a beginning has not


def _end_of_log(directory: Path, job: QueuedJob | None) -> str:
    """Return what a job said last of which the run's history knows no end: why it could not begin."""
    job_id = job.job_id if job is not None else next(reversed(job_ids(directory)), "")
    said = last_line(directory / "logs" / f"job-{job_id}.log")
    return f"; its log ends: {said[:_LOG_CHARACTERS]}" if said else ""


def _noticed(run: RunDirectory, last: Life | None) -> str:
    if last is None:
        return ""
    folder, ids = log_names(run.path) if is_task(run.path) else (run.path, [last.job_id])
    found = (ending_notice(folder, job_id=job_id, life=last.number) for job_id in ids)
    return next((state for state in found if state), "")


def _records(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the last records of metrics that tell where the run was when."""
    return [
        row for row in last_records(run.metrics, count=_RATE_RECORDS)
        if all(is_number(row.get(name)) for name in ("samples_seen", "time"))
    ]  # fmt: skip


def _total_samples(records: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the run's length, which records tell by their progress, a share of the whole."""
    for record in reversed(records):
        progress = record.get("progress")
        if is_number(progress) and progress > 0 and is_number(total := record["samples_seen"] / progress):
            return round(total)
    return None


def _rate(records: Sequence[Mapping[str, Any]], *, since: float) -> float | None:
    """Return images/s over the last records of the present life."""
    recent = [record for record in records if record["time"] >= since]
    if len(recent) < 2:
        return None
    seconds = recent[-1]["time"] - recent[0]["time"]
    samples = recent[-1]["samples_seen"] - recent[0]["samples_seen"]
    return samples / seconds if seconds > 0 and samples > 0 else None


def _own_rate(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median of the rates that a run noted itself: when it was started last, no history says."""
    noted = [rate for record in records if is_number(rate := record.get("images_per_second"))]
    return statistics.median(noted) if noted else None


def _lost_seconds(accounts: Sequence[LifeAccount], lives: Sequence[Life], *, running: bool) -> float | None:
    """Return what a run lost; its accounts tell from when to when it went where no history does."""
    if not accounts:
        return None
    began = lives[0].started if lives else accounts[0].began
    ended = accounts[-1].ended
    if lives:
        ended = lives[-1].ended or max(lives[-1].started, ended)
    spent = add_up(list(accounts))
    productive = sum(spent[name] for name in _PRODUCTIVE)
    return max(0.0, (time.time() if running else ended) - began - productive) if productive else None


def _last_error(run: RunDirectory, lives: Sequence[Life]) -> str:
    for life in reversed(lives):
        if life.outcome in {"failed", "excluded"}:
            return f"life {life.number}: {life.reason}"
    records = [
        record
        for path in (run.events_of(SUPERVISOR), run.events)  # the latter in runs of older versions
        for record in reversed(last_records(path, count=_EVENT_RECORDS))
    ]
    return next((str(row.get("reason", "")) for row in records if row.get("kind") == "retry"), "")
