"""A job that begins when a run is done which waits or runs already. Knows no pipeline.

Where that run keeps its job's id, SLURM's own dependency (afterok) suffices. A chain's job changes from life
to life: what waits for one is queued held, and the run's job file names it, so that the life that finishes
releases it and one that fails cancels it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster import slurm
from cluster.admission import RELEASABLE, queued_job
from cluster.history import History, was_submitted
from cluster.job import amended_job, newest_job, newest_job_file
from cluster.submission import Prepared, submit
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory


def submit_after(before: Path, prepared: Prepared, *, release: bool = False) -> str:
    """Queue a job behind the run in the directory `before` and return the job's id.

    Args:
        release: as of `submit`.

    Raises:
        UserError: nobody is at that run, which is not done, or as of `submit`.
    """
    job_id = job_before(before)
    run = RunDirectory(before.absolute())
    if not job_id:
        return submit(prepared, release=release)
    if not is_chain(run.path):
        return submit(prepared, release=release, options=dependency([job_id]))
    prepared.job.held_behind = [str(run.path)]
    own = submit(prepared, release=release, options=("--hold",))
    try:
        _tell(run.path, own)
    except OSError as error:  # a full disk, or a colleague's run: nobody would ever release the job
        slurm.cancel_job(own)
        raise UserError(
            f"--after {before}: {error.strerror}; job {own}, of which it could not be told, was cancelled"
        ) from None
    if run.marker("done") is not None:  # by now, and it has seen nobody behind it
        slurm.release(own)
    return own


def job_before(before: Path) -> str:
    """Return the job of the run in the directory `before`, empty where that is done.

    Where there is no SLURM to ask, as for a preview elsewhere, its directory alone is looked at.

    Raises:
        UserError: it is no run that was submitted, it was held or cancelled, or nobody is at it.
    """
    run = RunDirectory(before.absolute())
    if not was_submitted(run.path):
        what = "holds no run that was submitted" if run.path.is_dir() else "no such folder"
        raise UserError(f"--after {before}: {what}")
    if run.marker("done") is not None:
        return ""
    for name in RELEASABLE:
        if run.marker(name) is not None:
            raise UserError(f"--after {before}: it is {name}; submit it with --release first")
    job_id = queued_job(run.path) if slurm.available() else ""
    if job_id is None:
        raise UserError(f"--after {before}: it is not done, and no job of it waits or runs; submit it first")
    return job_id


def is_chain(directory: Path) -> bool:
    """Return whether the run was submitted as a chain."""
    try:
        filed = newest_job(directory)
    except (OSError, UserError):  # a colleague's; of what comes after a chain its file is yet to be told
        return History(directory).continuation() == "chain"
    return filed is not None and filed.site.continuation == "chain"


def dependency(jobs: Sequence[str]) -> tuple[str, ...]:
    """Return sbatch's options by which a job waits until others have ended well."""
    return (f"--dependency=afterok:{':'.join(jobs)}", "--kill-on-invalid-dep=yes") if jobs else ()


def _tell(directory: Path, job_id: str, *, right_behind: bool = True) -> None:
    """Write into a run's job file, and those of the chains before it, which held job is behind it."""
    job_file = newest_job_file(directory)
    if job_file is None:
        return
    with amended_job(job_file) as job:
        job["dependents" if right_behind else "later"].append(job_id)
    for further in job["held_behind"]:
        _tell(Path(further), job_id, right_behind=False)
