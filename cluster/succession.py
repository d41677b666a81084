"""How a run goes on in another life: requeued, by a successor in the queue, or not at all.

chain is for sites that forbid requeueing: each job first queues its own successor, which SLURM starts only if
this job does not end well, and drops when it does. That survives even a kill -9 of the batch script.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster import slurm
from cluster.history import History
from cluster.job import Job, read_job
from coatnet.config import UserError

EXIT_UNFINISHED = 85  # not zero: SLURM then starts the successor, and nothing that comes after the run


class Succession:
    """What follows one job.

    Args:
        job: what was submitted.
        job_file: the file that successors are started with; script.sh lies beside it.
        job_id: this job.
        history: where successors are recorded.
        task: its number in a job array; what succeeds it is an array of that task alone.
        known_as: what SLURM is told to act on; None for the job's id.
    """

    def __init__(
        self, job: Job, *, job_file: Path, job_id: str, history: History, task: int | None = None,
        known_as: str | None = None,
    ) -> None:  # fmt: skip
        self._job, self._job_id, self._history, self._task = job, job_id, history, task
        self._known_as = known_as or job_id
        self._job_file, self._script = job_file, job_file.with_name("script.sh")
        self._successor: str | None = None

    @property
    def mode(self) -> str:
        """Return the continuation mode."""
        return self._job.site.continuation

    @property
    def cancelled_status(self) -> int:
        """Return the status that lets nothing follow a cancelled run, whose job SLURM itself may not end.

        0 drops a chain's successor; elsewhere it would start what comes after the run.
        """
        return 0 if self.mode == "chain" else EXIT_UNFINISHED

    def end_before(self) -> str:
        """Return how the job before this one ended the run, a successor's: cancelled by scancel, or failed.

        SLURM starts the successor of a failed one whose request to cancel it was never heard.
        """
        lives = self._history.lives()
        successors = [entry["job_id"] for entry in self._history.events() if entry["event"] == "successor"]
        if self.mode != "chain" or not lives or self._job_id not in successors:
            return ""
        if lives[-1].outcome == "failed":
            return "failed"
        return "cancelled" if slurm.job_state(lives[-1].job_id) == "CANCELLED" else ""

    def prepare(self) -> None:
        """Queue the successor first thing, in chain mode.

        Raises:
            SlurmError: SLURM refuses it, as where a user may have so many jobs; `go_on` tries again.
        """
        if self.mode == "chain":
            self._queue_successor({})

    def _queue_successor(self, excluded: Mapping[str, str]) -> None:
        options = [f"--dependency=afternotok:{self._known_as}", "--kill-on-invalid-dep=yes"]
        if self._task is not None:
            options.append(f"--array={self._task}")
        nodes = self._all_excluded(excluded)
        if nodes:
            options.append(f"--exclude={','.join(nodes)}")
        self._successor = slurm.patient_sbatch(str(self._script), *options)
        self._history.note("successor", job_id=self._successor)

    def go_on(self, *, excluded: Mapping[str, str]) -> int:
        """Let the run go on in another life off the `excluded` nodes; return the exit status for that.

        Raises:
            SlurmError: the site forbids it, or the controller stays away.
        """
        if self.mode == "requeue":
            slurm.requeue(self._known_as, exclude=self._all_excluded(excluded))
            return 0
        if self.mode == "none":
            return EXIT_UNFINISHED
        if self._successor is None:
            self._queue_successor(excluded)
        elif excluded:
            slurm.exclude_nodes(self._successor, self._all_excluded(excluded))
        return EXIT_UNFINISHED

    def finished(self) -> None:
        """Let the held jobs go that wait for this run (pipelines in chain mode)."""
        for job_id in self._as_filed().dependents:
            slurm.release(job_id)

    def failed(self) -> None:
        """Take the successor and what waits for this run out of the queue."""
        job = self._as_filed()
        successor = [self._successor] if self._successor else []
        for job_id in [*successor, *job.dependents, *job.later]:
            slurm.cancel_job(job_id, patiently=True)

    def _as_filed(self) -> Job:
        """Return the job as its file has it now: more may have been queued behind it since it began."""
        try:
            return read_job(self._job_file)
        except (OSError, UserError):
            return self._job

    def _all_excluded(self, new: Mapping[str, str]) -> list[str]:
        site = self._job.site.exclude
        return [*([site] if site else []), *dict.fromkeys([*self._history.excluded(), *new])]
