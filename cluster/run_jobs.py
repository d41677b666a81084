"""Which of SLURM's jobs are a run's: those that its history names, and those whose script lies in it.

A command that was killed right after sbatch has taken its job's id with it; the path of the script, which
SLURM keeps with a job, still tells whose the job is. Asks no queue.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from cluster.array import is_task, job_ids
from cluster.job import SCRIPT, SUBMISSIONS
from cluster.slurm import QueuedJob, jobs_of

_REFUSED = ("FAILED", "BadConstraints")  # by sbatch, which has told so; SLURM knows the job all the same


def jobs_of_run(directory: Path, queue: Mapping[str, QueuedJob]) -> list[QueuedJob]:
    """Return the jobs of a run that SLURM knows, as its history has them, and last what is not recorded."""
    home, ids = os.path.realpath(directory), job_ids(directory)
    if is_task(directory):  # the id of one of them is that of the whole array
        return [queue[job_id] for job_id in ids if job_id in queue]
    recorded = [job for job_id in ids for job in jobs_of([job_id], queue)]
    return list(dict.fromkeys([*recorded, *(job for job in queue.values() if run_of(job) == home)]))


def run_of(job: QueuedJob) -> str | None:
    """Return the run directory in which a job's script lies, as far as it is one that `submit` wrote."""
    return None if (job.state, job.reason) == _REFUSED else _home(job.script)


# Each of many runs asks of every job in the queue, and each link of a path is a question to a file system.
@functools.cache
def _home(script: str) -> str | None:
    path = Path(script)
    if path.name != SCRIPT or path.parent.parent.name != SUBMISSIONS:
        return None
    return os.path.realpath(path.parents[2])


def users_of(directories: Iterable[Path]) -> set[int]:
    """Return the ids of the users who own these runs or have submitted them."""
    users = set()
    for directory in directories:
        for path in (directory, *directory.glob(f"{SUBMISSIONS}/[0-9]*")):
            with suppress(OSError):  # what cannot be read is told as the run's state
                users.add(path.stat().st_uid)
    return users
