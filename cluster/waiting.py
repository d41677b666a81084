"""Why a job waits, where somebody has to do something about it: one line with the remedy. Asks no queue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.job import filed_job
from cluster.run_jobs import jobs_of_run, run_of
from cluster.slurm import QueuedJob, jobs_of
from coatnet.runtime.run_directory import RunDirectory

_HELD_BY_USER = "JobHeldUser"
_NO_START = "a node could not start it, and its administrators can see why; then: scontrol release {job}"
_SMALLER = "more than may be had at once; coatnet cancel {directory}, then submit with less"
_NOT_ALLOWED = "not to be used here by you any more; coatnet cancel {directory}, then submit with another"
_PUT_BACK = "put back and held, by somebody or by a rule of the site; let it begin: scontrol release {job}"
# By a part of SLURM's words for state and reason; the first that fits. The reason stays in front: it is what
# manuals and administrators know.
_REMEDIES = {
    _HELD_BY_USER: "held; let it begin: scontrol release {job}",
    "JobHeldAdmin": "held by an administrator, who can say why",
    "JobHoldMaxRequeue": _NO_START,
    "requeued held": _NO_START,
    **dict.fromkeys(("held state", "special exit state", "REQUEUE_HOLD", "SPECIAL_EXIT"), _PUT_BACK),
    "RESV_DEL_HOLD": "held for ever; coatnet cancel {directory}, then submit to another or without one",
    **dict.fromkeys(("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"), _NOT_ALLOWED),
    "DependencyNeverSatisfied": "what it waits for has failed; coatnet cancel {directory}, then submit again",
    "BadConstraints": "no node has what it asks for; coatnet cancel {directory}, then submit anew",
    "BeginTime": "its time has not come; after a requeue that takes some two minutes",
    "PartitionConfig": "no node there has what it asks for; coatnet cancel {directory}, then submit anew",
    "PartitionTimeLimit": _SMALLER,
    "PartitionNodeLimit": _SMALLER,
    "PartitionDown": "its partition is down; wait, or cancel and submit to another",
    "PartitionInactive": "its partition starts nothing; wait, or cancel and submit to another",
    "PerJob": _SMALLER,  # as in QOSMaxWallDurationPerJobLimit, AssocMaxNodePerJobLimit
    "PerNode": _SMALLER,
}


def why_it_waits(directory: Path, job: QueuedJob, *, queue: Mapping[str, QueuedJob]) -> str:
    """Return SLURM's reason, and what to do where waiting alone will not help."""
    behind = ""
    if job.reason == _HELD_BY_USER:
        behind = _why_behind(directory, job, queue)
    elif job.reason == "Dependency":
        behind = _begins_after(job, queue)
    if behind:
        return behind
    told = f"{job.state} {job.reason}"
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in told), "")
    if job.reason.startswith("Partition") and _has_a_choice(directory):
        remedy = ""  # of the partition that was tried last; another takes the job
    words = remedy.format(job=job.array_job_id or job.job_id, directory=directory)
    return ": ".join(part for part in (job.reason, words) if part)


def _has_a_choice(directory: Path) -> bool:
    """Return whether a run may begin in any of several partitions."""
    filed = filed_job(directory)
    return filed is not None and "," in (filed.site.partition or "")


def _begins_after(job: QueuedJob, queue: Mapping[str, QueuedJob]) -> str:
    """Return the runs that SLURM lets a job wait for, or the jobs where they are of no run that is known."""
    names = [
        next(filter(None, map(run_of, jobs_of([job_id], queue))), f"job {job_id}") for job_id in job.waits_for
    ]
    return f"begins after {', '.join(dict.fromkeys(names))}" if names else ""


def _why_behind(directory: Path, job: QueuedJob, queue: Mapping[str, QueuedJob]) -> str:
    """Return what a job that was submitted held waits for, and what to do if nobody will release it."""
    filed = filed_job(directory)
    waiting = []
    for before in map(Path, filed.held_behind if filed else ()):
        if RunDirectory(before).marker("done") is not None:
            return f"held although {before} is done; let it begin: scontrol release {job.job_id}"
        if not any(one.is_alive for one in jobs_of_run(before, queue)):
            return (
                f"held behind {before}, of which no job is left; submit the pipeline again, or give up: "
                f"coatnet cancel {directory}"
            )
        waiting.append(str(before))
    return f"begins after {', '.join(waiting)}" if waiting else ""
