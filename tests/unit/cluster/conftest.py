"""One life of a job among real processes: SLURM's commands are scripts that write down what they hear."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.history import History
from cluster.job import MARKERS, Job, write_job
from cluster.site import PreflightConfig, SiteConfig
from cluster.supervisor import Supervisor
from coatnet.runtime.run_directory import RunDirectory, read_lines

Program = Callable[[str, str], None]
# A requeue ends the job that asks for it; jobs run unless a file tells another state.
_SCONTROL = """\
case "$*" in
  "show hostnames "*) echo "$3" | tr , ' ' ;;
  "requeue "*) (sleep 0.05; kill -TERM $PPID) > /dev/null 2>&1 & ;;
  *" show job "*) echo "JobState=$(cat {states}/$4 2>/dev/null || echo RUNNING)" ;;
esac"""
_SRUN = """\
rest=${{COATNET_ATTEMPT#*.}}
run={run} try=${{rest#*.}} label=life-00${{rest%.*}}.try-${{rest#*.}}
case "$*" in *node_check*) echo "check $2" >> {heard}; {checks} exit 0 ;; esac
echo "srun $2" >> {heard}
case "$try" in {cases} esac"""


class Machine:
    """A SLURM that has given job 7 and its nodes to a run."""

    # What ranks do, as shell.
    DONE = "echo {} > $run/done"
    STOPPED = 'echo "{\\"attempt\\": \\"$COATNET_ATTEMPT\\"}" > $run/stopped'

    def __init__(self, folder: Path, program: Program) -> None:
        self.run = RunDirectory(folder / "run")
        self.history = History(self.run.path)
        self.nodes = ["n1", "n2"]
        self._make, self._states = program, folder / "states"
        self._heard, self._job_file = folder / "heard", folder / "job.json"
        for path in (self._states, self.run.logs):
            path.mkdir(parents=True)
        self.history.note("submitted", job_id="7", folder=folder.name, lives=0)
        self._program("sbatch", "echo 8")
        self._program("scancel", "")
        self._program("scontrol", _SCONTROL.format(states=self._states))

    def submit_anew(self) -> None:
        """Let the next job be one whose submission nobody has noted."""
        self._job_file = self._job_file.parent / "0002" / "job.json"
        self._job_file.parent.mkdir()

    @staticmethod
    def ended(node: str, words: str, *, task: int = 0, says: str = "") -> str:
        """Return the shell by which a rank ends as srun tells it, with its last words in its log."""
        log = f"echo '{says}' > $run/logs/$label.rank-{task}.log; " if says else ""
        return f"{log}echo 'srun: error: {node}: task {task}: {words}' >&2; exit 1"

    def live(self, *tries: str, checks: str = "", task: int | None = None, **job: Any) -> int:
        """Live once and return the status; the ranks of each try do what it says, as those of the last later.

        Args:
            checks: what the preflight's tasks do; without it there is none.
            job: fields of the job, and those of its site.
        """
        cases = [f"{number}) {text} ;;" for number, text in enumerate(tries[:-1], start=1)]
        text = _SRUN.format(
            run=self.run.path if task is None else self.run.path / f"task-{task:04d}",
            heard=self._heard, checks=checks, cases=" ".join([*cases, f"*) {tries[-1]} ;;"]),
        )  # fmt: skip
        self._program("srun", text, tells=False)
        fields = ("command", "protocol", "array", "dependents", "working_directory")
        place = str(self.run.path)
        own = {name: job.pop(name, place) for name in fields if name in job or name == "working_directory"}
        site = SiteConfig(
            **{"nodes": len(self.nodes), "preflight": PreflightConfig(enabled=bool(checks)), **job}
        )
        environment = {
            **os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": ",".join(self.nodes),
            "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7",
        }  # fmt: skip
        given = Job(
            "run", place, site=site, code=place, **{"command": ["pretrain"], "protocol": MARKERS, **own}
        )
        write_job(given, self._job_file)
        self.supervisor = Supervisor(given, job_file=self._job_file, environment=environment)
        return self.supervisor.main()

    def heard(self) -> list[str]:
        """Return what SLURM was asked for, questions aside."""
        lines = self._heard.read_text().splitlines() if self._heard.exists() else []
        return [line for line in lines if " show " not in line]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what the batch script recorded of a kind."""
        return [one for one in read_lines(self.run.events_of("supervisor")) if one["kind"] == kind]

    def set_state(self, job_id: str, state: str) -> None:
        """Let SLURM give a job another state than RUNNING."""
        (self._states / job_id).write_text(state)

    def state_file(self, job_id: str) -> Path:
        """Return the file that a shell may write a job's state to."""
        return self._states / job_id

    def refuse(self, command: str, words: str, *, also: str = ":") -> None:
        """Let scontrol refuse a command."""
        refusal = f'case "$1" in {command}) {also}; echo "{words}" >&2; exit 1 ;; esac\n'
        self._program("scontrol", refusal + _SCONTROL.format(states=self._states))

    def refuse_submissions(self, count: int, words: str) -> None:
        """Let the first `count` calls of sbatch be refused."""
        left = self._states / "refusals"
        left.write_text("x" * count)
        refusal = f'[ -s {left} ] && {{ truncate -s -1 {left}; echo "{words}" >&2; exit 1; }}'
        self._program("sbatch", f"{refusal}\necho 8")

    def last_life(self) -> tuple[str, int, str]:
        """Return outcome, tries and reason of the last life."""
        life = self.history.lives()[-1]
        return life.outcome, life.tries, life.reason

    def _program(self, name: str, text: str, *, tells: bool = True) -> None:
        tell = f'echo "{name} $*" >> {self._heard}\n' if tells else ""
        self._make(name, tell + text)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return what makes a command from shell; such commands come first in the path."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def made(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return made


@pytest.fixture
def machine(tmp_path: Path, program: Program) -> Iterator[Machine]:
    """Return a machine; the signal handlers come back afterwards."""
    made = Machine(tmp_path, program)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the directory of a run that was submitted and whose first life has begun."""
    directory = tmp_path / "runs" / "first"
    (directory / "logs").mkdir(parents=True)
    history = History(directory)
    history.note("submitted", job_id="7", folder="0001", lives=0)
    history.begin(job_id="7", nodes=["n1"], step=-1)
    return directory
