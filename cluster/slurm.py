"""SLURM's commands as functions: every call has a time limit, no call sees a shell.

squeue is asked for a table, which every version prints alike. Its JSON has several forms; in 22.05 it holds
the jobs of the whole cluster, whoever is asked for, and none, without a word, while the controller is away.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from shutil import which
from typing import TypeVar

from cluster.site import time_seconds
from coatnet.config import UserError

_Answer = TypeVar("_Answer")
_TIMEOUT_SECONDS = 60.0  # a busy controller may take half of it
GLANCE_SECONDS = 20.0  # of who only looks, and can do without
_LEAKING = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_")
_KEPT = ("SLURM_CONF",)
# Every version has these and further ones beside PENDING and RUNNING, in all of which a job may still go on.
_ENDED = {
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
    "OUT_OF_MEMORY", "REVOKED",
}  # fmt: skip
# How SLURM's commands say that the controller does not answer, and our own words for it.
_AWAY = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "did not answer",
         "ended by SIG", "Zero Bytes were transmitted", "Transport endpoint",
         "Communication connection failure", "Slurm backup controller in standby")  # fmt: skip
_ALL = ("--all",)  # else partitions that a site hides, and one's own jobs there, are passed over in silence
_COLUMNS = "%A|%F|%K|%T|%r|%S|%E|%o"
_UNHEARD = ("Unable to contact slurm controller", "Connection refused", "controller in standby")
_AWAY_SECONDS = 900.0
_REFUSALS_SECONDS = 20.0
_GONE = ("Invalid job id", "already completing or completed", "already finished")
_DEPENDENCY = re.compile(r":(\d+)")  # afterok:12(unfulfilled),afterany:13_*
_ERROR = re.compile(r"\b(error|fatal)\b", re.IGNORECASE)
_MOST_LINES = 3
_JOB_ID = re.compile(r"(?:Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?")


class SlurmError(UserError):
    """A SLURM command failed: the message is what it said of that."""


class PerhapsSubmitted(SlurmError):
    """Sbatch failed in a way that does not tell whether SLURM has taken the job."""


@dataclass(frozen=True)
class QueuedJob:
    """One job as the queue or the accounting tells it.

    Args:
        job_id: "12", or "12_3" for a task of an array; scancel takes either.
        reason: why it waits or ended, empty where SLURM has none.
        array_job_id: the array that a task belongs to, empty for ordinary jobs.
        script: the path that sbatch was given, empty where it is not known.
        start: when it began or is expected to, as 2026-11-28T09:41:58 of this machine's time zone; empty
            where SLURM does not say.
        waits_for: the jobs whose end it waits for.
    """

    job_id: str
    state: str
    reason: str = ""
    array_job_id: str = ""
    script: str = ""
    start: str = ""
    waits_for: tuple[str, ...] = ()

    @property
    def is_alive(self) -> bool:
        """Return whether the job waits, runs or ends."""
        return self.state not in _ENDED


def available() -> bool:
    """Return whether this machine can talk to a SLURM."""
    return which("squeue") is not None


def run_command(
    argv: Sequence[str], *, limit_seconds: float | None = None, keep_open: Sequence[int] = ()
) -> str:
    """Run one of SLURM's commands and return what it printed.

    Args:
        limit_seconds: how long it may take; None for a minute.
        keep_open: descriptors that it holds as well, for as long as it runs.

    Raises:
        SlurmError: it is not installed, failed, or did not answer in time.
    """
    limit = limit_seconds or _TIMEOUT_SECONDS
    try:
        done = _answered(argv, limit=limit, keep_open=keep_open)
    except FileNotFoundError:
        raise SlurmError(
            f"{argv[0]} is not installed here; submit from a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer within {limit:g} s") from None
    if done.returncode != 0:
        raise SlurmError(f"{argv[0]}: {_told(done.stderr, argv[0]) or _ending(done.returncode)}")
    return done.stdout


def _told(said: str, program: str) -> str:
    """Return what a failed command said of its failure: a site's notices may stand around that."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)] or lines[:1]
    words = (line.removeprefix(f"{program}: ").removeprefix("error: ") for line in errors)
    return "; ".join(list(dict.fromkeys(words))[:_MOST_LINES])


def _answered(
    argv: Sequence[str], *, limit: float, keep_open: Sequence[int]
) -> subprocess.CompletedProcess[str]:
    """Let a command finish: what SLURM sends to a job reaches also whom its batch script asks a question.

    It inherits a mask by which such signals wait for its end. To ignore them before it begins (`preexec_fn`)
    would copy the whole process, and is not safe among threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=_environment(), pass_fds=keep_open,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process:
        try:
            printed, said = process.communicate(timeout=limit)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(argv, process.returncode, printed, said)


def _ending(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else "no message"


def _environment() -> dict[str, str]:
    """Return ours without the variables by which an outer job would steer an inner one."""
    given = os.environ.items()
    return {name: value for name, value in given if name in _KEPT or not name.startswith(_LEAKING)}


def sbatch(script: str, *options: str, keep_open: Sequence[int] = ()) -> str:
    """Submit the script at the path `script` and return the job's id.

    Args:
        keep_open: descriptors that sbatch holds as well: it goes on if this process is killed.

    Raises:
        PerhapsSubmitted: it did not say a job's id, or no controller answered that may have heard it.
        SlurmError: it was refused.
    """
    try:
        printed = run_command(["sbatch", "--parsable", *options, script], keep_open=keep_open).strip()
    except SlurmError as error:
        words = str(error)
        if any(one in words for one in _AWAY) and not any(one in words for one in _UNHEARD):
            raise PerhapsSubmitted(words) from None
        raise
    for line in reversed(printed.splitlines()):  # a site's wrapper may say more, before it and behind
        found = _JOB_ID.fullmatch(line.strip())
        if found:
            return found[1]
    raise PerhapsSubmitted(f"sbatch printed {printed[:200]!r} instead of a job id")


def patient_sbatch(script: str, *options: str) -> str:
    """Submit as `sbatch` does, again while no controller is there to have heard of it."""
    return _patiently(lambda: sbatch(script, *options), away=_UNHEARD)


def job_state(job_id: str) -> str | None:
    """Return the state that SLURM's controller holds of a job, None when it knows it no longer.

    Asked again while the controller is away.
    """
    try:
        printed = _patiently(lambda: run_command(["scontrol", "--oneliner", "show", "job", job_id]))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    found = re.search(r"\bJobState=([A-Z_]+)", printed)
    return found[1] if found else None


def requeue(job_id: str, *, exclude: Sequence[str] = ()) -> None:
    """Put a running job back into the queue; `exclude` names nodes that it shall not get again.

    Raises:
        SlurmError: the site forbids it, or the controller stays away.
    """
    # ExcNodeList can be changed only while the job is pending, so the requeue comes first.
    _patiently(lambda: run_command(["scontrol", "requeue", job_id]))
    if exclude:
        exclude_nodes(job_id, exclude)


def exclude_nodes(job_id: str, nodes: Sequence[str]) -> None:
    """Keep a pending job off some nodes."""
    argv = ["scontrol", "update", f"jobid={job_id}", f"ExcNodeList={','.join(nodes)}"]
    _patiently(lambda: run_command(argv), refusals_seconds=_REFUSALS_SECONDS)


def _patiently(
    ask: Callable[[], _Answer], *, refusals_seconds: float = 0.0, away: Sequence[str] = _AWAY
) -> _Answer:
    """Ask again while the controller is away, which a restart of it can be for minutes.

    Args:
        refusals_seconds: for how long to ask again although the controller says no.
        away: the words by which it is.
    """
    began = time.monotonic()
    while True:
        try:
            return ask()
        except SlurmError as error:
            is_away = any(words in str(error) for words in away)
            if time.monotonic() - began > (_AWAY_SECONDS if is_away else refusals_seconds):
                raise
            time.sleep(0.5)


def cancel_job(job_id: str, *, patiently: bool = False) -> None:
    """End a job, pending or running; one that is already gone is no error.

    Args:
        job_id: whose.
        patiently: whether to ask again while the controller is away.
    """
    with _unless_gone():
        away = _AWAY if patiently else ()
        _patiently(lambda: run_command(["scancel", job_id]), away=away)


def release(job_id: str) -> None:
    """Let a held job run; nobody else would, so a controller that is away is waited for.

    One that is already gone is no error, nor is one that runs.
    """
    with _unless_gone():
        _patiently(lambda: run_command(["scontrol", "release", job_id]))


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except SlurmError as error:
        if not any(words in str(error) for words in _GONE):
            raise


def hostnames(node_list: str) -> list[str]:
    """Expand SLURM's `fake[1-3]`."""
    return run_command(["scontrol", "show", "hostnames", node_list]).split()


def queue(*, users: Collection[int] = (), limit_seconds: float | None = None) -> dict[str, QueuedJob]:
    """Return the jobs that the controller still knows, by the id that each job knows itself by.

    Args:
        users: whose jobs, beside this user's own.
        limit_seconds: as of `run_command`.

    Raises:
        SlurmError: squeue fails, or prints something else.
    """
    whose = ",".join(map(str, sorted({os.getuid(), *users})))
    return parse_queue(
        run_command(
            ["squeue", *_ALL, "--noheader", "--states=all", f"--format={_COLUMNS}", f"--user={whose}"],
            limit_seconds=limit_seconds,
        )
    )


def jobs_of(job_ids: Collection[str], known: Mapping[str, QueuedJob]) -> list[QueuedJob]:
    """Return those of the known jobs that have one of the ids, or belong to an array that has."""
    return [job for own_id, job in known.items() if own_id in job_ids or job.array_job_id in job_ids]


def accounted(job_ids: Sequence[str]) -> dict[str, QueuedJob]:
    """Return finished jobs from the accounting; empty where the site has none."""
    if not job_ids:
        return {}
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
    argv.append(f"--jobs={','.join(job_ids)}")
    try:
        printed = run_command(argv, limit_seconds=GLANCE_SECONDS)
    except SlurmError:
        return {}
    found = {}
    for line in printed.splitlines():
        fields = line.split("|")
        if len(fields) == 2:
            state = fields[1].split(" ")[0]  # "CANCELLED by 1000"
            found[fields[0]] = QueuedJob(fields[0], state)
    return found


@dataclass(frozen=True)
class Partition:
    """A partition's limits; None where it has none."""

    name: str
    state: str
    limit_seconds: int | None
    most_nodes: int | None


def partitions(wanted: str | None) -> list[Partition]:
    """Return the partitions of a comma-separated list, or the default one for None.

    Where there is no default none is told: a site's plugin may choose one.

    Raises:
        SlurmError: one of them does not exist.
    """
    printed = run_command(["scontrol", *_ALL, "--oneliner", "show", "partition"])
    known, default = {}, None
    for line in printed.splitlines():
        fields = dict(item.split("=", 1) for item in line.split() if "=" in item)
        name = fields.get("PartitionName", "")
        counts = [fields.get("MaxNodes", ""), fields.get("TotalNodes", "")]
        known[name] = Partition(
            name,
            state=fields.get("State", "UP"),
            limit_seconds=_limit_seconds(fields.get("MaxTime", "UNLIMITED")),
            most_nodes=min((int(count) for count in counts if count.isdecimal()), default=None),
        )
        if fields.get("Default") == "YES":
            default = name
    names = wanted.split(",") if wanted else [default] if default else []
    for name in names:
        if name not in known:
            raise SlurmError(f"partition {name} does not exist; there are: {', '.join(known)}")
    return [known[name] for name in names]


def parse_queue(printed: str) -> dict[str, QueuedJob]:
    """Read squeue's lines in the format of `_COLUMNS`.

    Raises:
        SlurmError: a line is something else.
    """
    jobs = {}
    for line in printed.splitlines():
        fields = line.split("|", _COLUMNS.count("|"))
        if len(fields) <= _COLUMNS.count("|"):
            raise SlurmError(f"squeue printed {line[:60].strip()!r} instead of a job")
        own_id, array, task, state, reason, start, dependencies, script = fields
        jobs[own_id] = QueuedJob(
            job_id=f"{array}_{task}" if task.isdecimal() else own_id,
            state=state,
            reason="" if reason == "None" else reason,
            array_job_id="" if task == "N/A" else array,
            script=script,
            start=start if start[:1].isdigit() else "",  # else N/A, Unknown
            waits_for=tuple(_DEPENDENCY.findall(dependencies)),
        )
    return jobs


def _limit_seconds(text: str) -> int | None:
    return None if text in {"UNLIMITED", "INFINITE"} else time_seconds(text)
