"""Beside the ranks: the process that SLURM knows as the batch script. It alone calls scontrol.

`python -m cluster.supervisor job.json` starts the ranks by srun, forwards the warning before the time limit,
and when they have ended finishes, leaves, continues in another life, retries in place or fails (decide.py).
Runs outside any container; knows no model and no data.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.array import task_folder
from cluster.blame import is_nobodys_fault, node_to_blame
from cluster.decide import RUNNING, Action, Ending, decide
from cluster.history import SUPERVISOR, History, Life
from cluster.job import MARKERS, Job, read_job
from cluster.launch import (
    OUT_OF_MEMORY,
    Attempt,
    Failure,
    failures,
    rank_command,
    rank_environment,
    sruns_words,
)
from cluster.preflight import PreflightError, unfit_nodes
from cluster.progress import last_words, newest_step
from cluster.site import read_secrets
from cluster.succession import Succession
from coatnet.config import UserError
from coatnet.config.plain_text import number_of
from coatnet.runtime.endings import STATUS_USER_ERROR
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.voice import heedless_voice, say_from_a_handler
from coatnet.runtime.whole_files import refresh_view

EXIT_HELD = 1
EXIT_OCCUPIED = 3
_LEASE_HELD = "held by process"
_LOST_PEER = "lost another rank"
_END_PATIENCE_SECONDS = 60.0  # after a requeue SLURM ends this process
_POLL_SECONDS = 0.1
_OUTCOMES = {Action.FINISH: "done", Action.LEAVE: "ended", Action.CONTINUE: "stopped", Action.FAIL: "failed"}


@dataclass(frozen=True)
class _End:
    """How a life ended. `bad` names nodes that shall not be had again, with the reason."""

    action: Action
    outcome: str
    reason: str
    tries: int
    status: int
    bad: dict[str, str]


class Supervisor:
    """One life of a job.

    Args:
        job: what was submitted.
        job_file: where it was read; successors are given the same.
        environment: the batch script's, with SLURM's own variables.
    """

    def __init__(self, job: Job, *, job_file: Path, environment: dict[str, str]) -> None:
        self.job, self.job_file, self.environment = job, job_file, environment
        self.job_id = environment["SLURM_JOB_ID"]
        self.directory = Path(job.directory)
        self.array_id = environment.get("SLURM_ARRAY_JOB_ID", self.job_id)
        self.task = int(environment["SLURM_ARRAY_TASK_ID"]) if job.array else None
        if self.task is not None:
            self.directory = task_folder(self.directory, self.task)
            (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        self.run = RunDirectory(self.directory)
        self.history = History(self.directory)
        # The last task's own id is that of the array: by it SLURM would requeue every task, done or not.
        known_as = None if self.task is None else f"{self.array_id}_{self.task}"
        self.succession = Succession(
            job, job_file=job_file, job_id=self.job_id, history=self.history, task=self.task,
            known_as=known_as,
        )  # fmt: skip
        self.warned = self.terminated = False
        self.process: subprocess.Popen[str] | None = None

    def main(self) -> int:
        """Live once and return the batch script's exit status."""
        signal.signal(signal.SIGUSR1, self._on_warning)
        signal.signal(signal.SIGTERM, self._on_terminate)
        refresh_view(self.run.checkpoints)
        self._file_submission()
        settled = self._settled()
        if settled is not None:
            return settled
        step = newest_step(self.directory)
        nodes = slurm.hostnames(self.environment["SLURM_JOB_NODELIST"])
        life = self.history.begin(job_id=self.job_id, nodes=nodes, step=step)
        say(f"life {life.number} on {', '.join(nodes)}, from step {max(step, 0)}")
        try:
            self.succession.prepare()
        except slurm.SlurmError as error:  # there is time until this life's end
            say(f"no successor yet: {error}")
        return self._act(self._live(nodes, life=life), life=life)

    def _file_submission(self) -> None:
        """Note this job's submission, if the command that submitted it was killed before it could."""
        history, folder = History(Path(self.job.directory)), self.job_file.parent.name
        if not history.has_submission(folder):
            told = {"lives": len(history.lives()), "continuation": self.job.site.continuation}
            history.note("submitted", job_id=self.array_id, folder=folder, **told)

    def _settled(self) -> int | None:
        """Return the exit status if there is nothing to start: settled already, or another job's run."""
        statuses = {"done": 0, "cancelled": self.succession.cancelled_status, "held": EXIT_HELD}
        for name, status in statuses.items():
            if self._is(name):
                say(f"the run is {name}; nothing to do")
                return status
        other = (self.run.marker("attempt") or {}).get("job_id")
        if other and other != self.job_id and slurm.job_state(other) == RUNNING:
            say(f"job {other} is running in {self.directory}; leaving it alone")
            return EXIT_OCCUPIED
        end = self.succession.end_before()
        if end:
            if end == "cancelled":
                self.run.mark("cancelled", reason="scancel")
            self.succession.failed()
            say(f"the job before this one ended the run: {end}")
            return int(end == "failed")
        step = newest_step(self.directory)
        stalled = self.history.lives_without_progress(step=step)
        if self.job.protocol == MARKERS and stalled >= self.job.site.lives_without_progress:
            lives = number_of(stalled, "life", "lives")
            return self._hold(f"{lives} in a row made no new checkpoint after step {max(step, 0)}")
        return None

    def _is(self, marker: str) -> bool:
        """Return whether the run carries a marker, or the array that it is a task of."""
        runs = (self.run, RunDirectory(self.job.directory))
        return any(run.marker(marker) is not None for run in runs)

    def _hold(self, reason: str) -> int:
        last = next((life for life in reversed(self.history.lives()) if life.reason), None)
        if last is not None:
            reason += f"; the last one: {last.reason}"
        self.run.mark("held", reason=reason)
        self.run.record_event("held", writer=SUPERVISOR, reason=reason, job_id=self.job_id)
        self.succession.failed()
        say(f"held: {reason}")
        return EXIT_HELD

    def _live(self, nodes: list[str], *, life: Life) -> _End:
        """Check the nodes and start the ranks, again after a crash, until the life has an end."""
        bad: dict[str, str] = {}
        crashes: list[Ending] = []
        number = 0
        while True:
            number += 1
            attempt = Attempt(self.job_id, life.number, number)
            unfit = self._check_nodes(nodes, bad, attempt=attempt)
            if unfit is not None:
                return unfit
            used = [node for node in nodes if node not in bad][: self.job.site.nodes]
            ending = self._attempt(attempt, nodes=used)
            action, reason = decide(ending)
            outcome = _OUTCOMES.get(action, "")
            if action is Action.RETRY or (action is Action.FAIL and not ending.user_error):
                crashes.append(ending)
                blamed = node_to_blame(crashes, nodes=used, known=self.history.excluded().values())
                if blamed is not None:
                    bad[blamed[0]] = blamed[1]
                    reason = f"{reason}; {blamed[0]} is left out from now on: {blamed[1]}"
                    if action is Action.FAIL or len(nodes) - len(bad) < self.job.site.nodes:
                        action, outcome = Action.CONTINUE, "excluded"
            say(f"try {number}: {action.value}: {reason}")
            if action is not Action.RETRY:
                return _End(action, outcome, reason, number, ending.status, bad)
            self.run.record_event(
                "retry", writer=SUPERVISOR, reason=reason, job_id=self.job_id, attempt=attempt.token
            )

    def _check_nodes(self, nodes: list[str], bad: dict[str, str], *, attempt: Attempt) -> _End | None:
        """Add unfit nodes to `bad`; return the life's end if too few are left, or none is to blame."""
        action, outcome, reason = Action.CONTINUE, "excluded", ""
        try:
            checked = [node for node in nodes if node not in bad]
            if self.job.site.preflight.enabled:
                say(f"checking {', '.join(checked)}; results: preflight/{attempt.label}.json")
            unfit = unfit_nodes(self.job, checked, attempt=attempt, environment=self.environment)
            if is_nobodys_fault(unfit, nodes=checked, lives=self.history.lives()[:-1]):
                raise PreflightError(f"life after life: {next(iter(unfit.values()))}")
            bad.update(unfit)
        except PreflightError as error:
            action, outcome, reason = Action.FAIL, "failed", f"preflight: {error}"
        if not reason and len(nodes) - len(bad) >= self.job.site.nodes:
            return None
        if slurm.job_state(self.job_id) != RUNNING:
            # the checks were cut short; requeueing here would revive a job that its user cancelled
            return _End(Action.LEAVE, "ended", "SLURM ended the job", attempt.number - 1, 0, {})
        reason = reason or "; ".join(f"{node}: {why}" for node, why in bad.items())
        say(f"{outcome}: {reason}")
        return _End(action, outcome, reason, attempt.number - 1, 1, bad)

    def _attempt(self, attempt: Attempt, *, nodes: list[str]) -> Ending:
        """Start the ranks, wait for their end and gather what is known of it."""
        self.run.clear("stopped")
        self.run.mark(
            "attempt", token=attempt.token, job_id=self.job_id, life=attempt.life, number=attempt.number
        )
        status, messages = 0, list[str]()
        if not self.warned:
            status, messages = self._run_ranks(attempt, nodes=nodes)
        if status == 0 and self.job.protocol != MARKERS and not self.warned:
            self.run.mark("done")
        failure, message = self._first_failure(messages, attempt)
        status = failure.status if failure else status
        if status == OUT_OF_MEMORY:
            message = f"out of memory, says SLURM; the last words: {message}"
        done = self.run.marker("done") is not None
        return Ending(
            status=status,
            node=failure.node if failure else "",
            message=message,
            done=done,
            stopped=self._stopped(attempt),
            cancelled=self._is("cancelled"),
            state=None if done else slurm.job_state(self.job_id),  # a done run waits for no controller
            warned=self.warned,
            # a lease that a dying job still holds is free again in seconds
            user_error=status == STATUS_USER_ERROR and _LEASE_HELD not in message,
            retries_left=self.job.site.retries + 1 - attempt.number,
        )

    def _first_failure(self, messages: Sequence[str], attempt: Attempt) -> tuple[Failure | None, str]:
        """Return the first rank that failed by itself, or else the first, and its last words, or srun's.

        srun tells ranks of one node and status together, and those that lost their peer often before it.
        """
        logs, failed = self.directory / "logs", failures(messages)
        for failure in failed:
            message = last_words(logs, attempt.label, rank=failure.rank)
            if _LOST_PEER not in message:
                return failure, message
        if not failed:
            return None, last_words(logs, attempt.label, rank=0) or sruns_words(messages)
        return failed[0], last_words(logs, attempt.label, rank=failed[0].rank)

    def _stopped(self, attempt: Attempt) -> bool:
        """Return whether this attempt said that it saved and stopped, and not one that was thought dead."""
        stopped = self.run.marker("stopped")
        return stopped is not None and stopped.get("attempt", attempt.token) == attempt.token

    def _run_ranks(self, attempt: Attempt, *, nodes: list[str]) -> tuple[int, list[str]]:
        secrets = read_secrets(Path(self.job.site.secrets_file)) if self.job.site.secrets_file else {}
        environment = rank_environment(
            self.job, attempt=attempt, nodes=nodes, given=self.environment, secrets=secrets
        )
        command = rank_command(
            self.job, attempt=attempt, nodes=nodes, directory=self.directory, task=self.task
        )
        say(f"srun on {', '.join(nodes)}; logs: {attempt.label}.rank-*.log")
        self.process = subprocess.Popen(
            command, env=environment, cwd=self.job.working_directory, stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        assert self.process.stderr is not None
        if self.warned:  # the warning came while srun was starting
            self.process.send_signal(signal.SIGUSR1)
        messages: list[str] = []
        for line in self.process.stderr:
            messages.append(line)
            say(line.rstrip())
        status = self.process.wait()
        self._remove_empty_logs(attempt.label)
        return status, messages

    def _remove_empty_logs(self, label: str) -> None:
        """Leave no file of ranks and checks that said nothing: 1,024 ranks had two million in 2,000 lives."""
        for log in (self.directory / "logs").glob(f"{label}.*.log"):
            with suppress(OSError):
                if log.stat().st_size == 0:
                    log.unlink()

    def _act(self, end: _End, *, life: Life) -> int:
        """Record how the life ended, leave the queue as that wants it, and return the exit status."""
        outcome = end.outcome
        if outcome == "excluded" and self.succession.mode == "none":
            outcome = "failed"
        self._record(end, life=life, outcome=outcome)
        if end.action is Action.CONTINUE:
            try:
                status = self.succession.go_on(excluded=end.bad)
            except slurm.SlurmError as error:
                return self._stay(end, life=life, why=str(error))
            if self.succession.mode == "requeue":
                self._wait_for_the_end()
            return status or (1 if end.outcome == "excluded" else 0)
        if end.action is Action.FINISH and self._is_whole():
            self.succession.finished()
        if end.action is Action.FAIL:
            self.succession.failed()
            return end.status or 1
        is_cancelled = end.action is Action.LEAVE and self._is("cancelled")
        return self.succession.cancelled_status if is_cancelled else 0

    def _stay(self, end: _End, *, life: Life, why: str) -> int:
        """End a run that SLURM does not let go on, unless SLURM is ending the job already."""
        if slurm.job_state(self.job_id) != RUNNING:
            return 0
        other = "chain" if self.succession.mode == "requeue" else "none"
        remedy = f"submit again, or with --continuation {other}"
        reason = f"{end.reason}, but SLURM does not let it go on: {why}; {remedy}"
        self._record(replace(end, reason=reason), life=life, outcome="failed")
        self.succession.failed()
        say(reason)
        return 1

    def _record(self, end: _End, *, life: Life, outcome: str) -> None:
        try:
            self.history.end(life, outcome=outcome, reason=end.reason, tries=end.tries, excluded=end.bad)
            self.run.record_event(
                "life",
                writer=SUPERVISOR,
                life=life.number,
                outcome=outcome,
                reason=end.reason,
                excluded=end.bad,
            )
        except OSError as error:  # a full disk must not keep the run from its next life, which looks again
            say(f"cannot record the end of this life: {error}")

    def _is_whole(self) -> bool:
        """Return whether all is done; the last task of an array sees that the others are, and marks it so."""
        if self.task is None:
            return True
        array = Path(self.job.directory)
        tasks = [RunDirectory(task_folder(array, number)) for number in range(self.job.array)]
        done = all(task.marker("done") is not None for task in tasks)
        if done:
            RunDirectory(array).mark("done")
        return done

    def _wait_for_the_end(self) -> None:
        """Wait for the TERM that a requeue sends: ending before it would end the job for good."""
        deadline = time.monotonic() + _END_PATIENCE_SECONDS
        while not self.terminated and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _on_terminate(self, number: int, frame: Any) -> None:
        self.terminated = True
        say_from_a_handler(dated("TERM: SLURM ends the job"))

    def _on_warning(self, number: int, frame: Any) -> None:
        self.warned = True
        say_from_a_handler(dated("USR1: telling the ranks to save and stop"))
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)


def say(message: str) -> None:
    """Write one line to the job's log."""
    print(dated(message), flush=True)


def dated(message: str) -> str:
    """Return a line of the job's log."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}"


def main() -> int:
    """Run the job whose file is given by the first argument."""
    job_file = Path(sys.argv[1])
    with heedless_voice():
        try:
            return Supervisor(read_job(job_file), job_file=job_file, environment=dict(os.environ)).main()
        except (UserError, OSError) as error:
            say(f"error: {error}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
