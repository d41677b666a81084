"""Cancel a run: the marker first, then what waits, then what runs, so that nothing revives it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cluster import slurm
from cluster.history import was_submitted
from cluster.job import filed_job
from cluster.run_jobs import jobs_of_run, users_of
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory

_REASON = "coatnet cancel"
_DENIED = "permission denied"


def cancel_run(directory: Path) -> list[str]:
    """Cancel every job of the run, and those that a pipeline holds behind it; return their ids.

    Raises:
        UserError: this is no run directory, the run is done already, or it could not be marked or ended.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    if not was_submitted(directory):
        raise UserError(f"{directory} was never submitted; stop it where it was started")
    run = RunDirectory(directory)
    if run.marker("done") is not None:
        raise UserError(f"{directory} is done; there is nothing to cancel")
    fault = None
    try:
        run.mark("cancelled", reason=_REASON)
        run.record_event("cancelled", writer="cancel", reason=_REASON)
    except OSError as error:  # a full disk keeps no job running
        fault = error.strerror
    marked = "marked as cancelled" if fault is None else f"not marked as cancelled ({fault})"
    try:
        ended = _end_all(directory) if slurm.available() else []
    except slurm.SlurmError as error:
        remedy = "its owner can cancel it" if _DENIED in str(error) else "cancel it again"
        raise UserError(
            f"{directory} is {marked}, but not all of its jobs are ended: {error}; {remedy}"
        ) from None
    if fault is not None:
        raise UserError(f"{directory} is {marked}; jobs ended: {', '.join(ended) or 'none'}")
    return ended


def _end_all(directory: Path) -> list[str]:
    queue = slurm.queue(users=users_of([directory]))
    ended = _end(jobs_of_run(directory, queue))
    job = filed_job(directory)
    behind = [*job.dependents, *job.later] if job is not None else []
    return ended + _end(slurm.jobs_of(behind, queue))


def _end(found: Iterable[slurm.QueuedJob]) -> list[str]:
    jobs = [job for job in found if job.is_alive]
    jobs.sort(key=lambda job: job.state != "PENDING")  # a successor would start when the job before it ends
    for job in jobs:
        slurm.cancel_job(job.job_id)
    return [job.job_id for job in jobs]
