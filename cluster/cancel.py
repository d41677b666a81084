"""Cancel a run: the marker first, then what waits, then what runs, so that nothing revives it."""

from __future__ import annotations

from pathlib import Path

from cluster import slurm
from cluster.history import History
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory


def cancel_run(directory: Path, *, reason: str = "coatnet cancel") -> list[str]:
    """Cancel every job of the run and return their ids.

    Raises:
        UserError: this is no run directory, or the run is done already.
    """
    history = History(directory)
    if not history.events():
        raise UserError(
            f"{directory} was never submitted: it has no lives.jsonl; stop it where it was started"
        )
    run = RunDirectory(directory)
    if run.marker("done") is not None:
        raise UserError(f"{directory} is done; there is nothing to cancel")
    run.mark("cancelled", reason=reason)
    run.record_event("cancelled", writer="cancel", reason=reason)
    if not slurm.available():
        return []
    jobs = [job for job in slurm.jobs_of(history.job_ids(), slurm.queue()) if job.is_alive]
    ended = []
    for job in sorted(
        jobs, key=lambda job: job.state != "PENDING"
    ):  # a successor would start when this one ends
        slurm.cancel_job(job.job_id)
        ended.append(job.job_id)
    return ended
