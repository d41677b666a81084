"""A job's life, and stages of a pipeline: SLURM's commands are scripts that write down what they hear."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import slurm, snapshot
from cluster.history import History
from cluster.job import MARKERS, Job, newest_job_file, read_job, write_job
from cluster.pipeline import prepare_pipeline, submit_pipeline
from cluster.site import PreflightConfig, SiteConfig
from cluster.status import read_status
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
_PARTITION = "PartitionName=gpu Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalNodes=16"
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


class Cluster:
    """A SLURM that numbers its jobs from 10 and writes down what it hears, and a pipeline file."""

    def __init__(self, folder: Path, program: Program) -> None:
        self.folder, self.path = folder, folder / "pipeline.yaml"
        self.site = SiteConfig(gpus_per_node=0)
        self._heard, self._make = folder / "heard", program
        (folder / "next").write_text("10")
        self.program("sbatch", f"read id < {folder}/next; echo $((id + 1)) > {folder}/next; echo $id")
        self.program("scontrol", f'[ "$3" != show ] || echo "{_PARTITION}"')
        self.program("scancel", "")
        self.queue()

    def program(self, name: str, text: str) -> None:
        self._make(name, f'echo "{name} $*" >> {self._heard}\n{text}')

    def queue(self, *jobs: str) -> None:
        """Let the queue hold these jobs, all pending."""
        lines = [f"echo '{job}|{job}|N/A|PENDING|JobHeldUser|N/A|(null)|'" for job in jobs]
        self.program("squeue", "\n".join(lines))

    def submit(self, **options: Any) -> dict[str, str]:
        self.forget()
        return submit_pipeline(self.path, prepare_pipeline(self.path, site=self.site), **options)

    def forget(self) -> None:
        """Let SLURM have heard nothing yet."""
        self._heard.unlink(missing_ok=True)

    def heard(self) -> list[str]:
        """Return what SLURM was asked to do, a submission as its options and the stage."""
        lines = [line.split() for line in self._heard.read_text().splitlines()]
        found = []
        for program, *words in lines:
            if program == "sbatch":
                found.append(" ".join(["sbatch", *words[1:-1], Path(words[-1]).parents[2].name]))
            elif program != "squeue" and "show" not in words:
                found.append(" ".join([program, *words]))
        return found

    def stages(self, **after: str) -> None:
        """Write stages that each come after the ones named, and continue as their last word says."""
        lines = ["stages:"]
        for name, words in after.items():
            *before, mode = words.split()
            lines.append(
                f"  {name}: {{command: evaluate, target: x, directory: {self.folder / name}, "
                f"after: [{', '.join(before)}], site: {{continuation: {mode}}}}}"
            )
        self.path.write_text("\n".join(lines) + "\n")

    def status(self, name: str) -> tuple[str, str]:
        found = read_status(self.folder / name, queue=slurm.queue())
        return found.state, found.detail

    def end(self, name: str, marker: str = "done") -> None:
        RunDirectory(self.folder / name).mark(marker)

    def job(self, name: str) -> Job:
        path = newest_job_file(self.folder / name)
        assert path is not None
        return read_job(path)

    def behind(self, name: str) -> tuple[list[str], list[str]]:
        job = self.job(name)
        return job.dependents, job.later


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
def machine(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Return a machine; the signal handlers come back afterwards."""
    monkeypatch.setattr("cluster.supervisor._POLL_SECONDS", 0.01)
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


@pytest.fixture
def cluster(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Return a SLURM and a pipeline file, in a folder of their own."""
    monkeypatch.setattr(snapshot, "PACKAGES", ("coatnet.doctor",))  # a copy of everything takes a while
    return Cluster(tmp_path, program)
