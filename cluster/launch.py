"""The argv of srun and the environment of the ranks, as pure functions of a job and its allocation."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.job import Job
from cluster.names import check_options, check_path
from coatnet.config import UserError
from coatnet.runtime.rendezvous import slurm_port

_LIFE_STRIDE, _TRY_STRIDE = 1009, 101  # far from the ports of jobs with neighbouring ids
# Of the site's own options those without which no step starts; others share out what only the ranks have.
_OF_EVERY_STEP = {"--mpi", "--network"}
_LAUNCHER_WAIT_SECONDS = 120  # for the other ranks after the first one ended well
_ENDED = re.compile(r"srun: error: ([A-Za-z0-9._-]+): tasks? (\d[\d,-]*): (.+?)(?: \(core dumped\))?\s*")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_SIGNALED = {signal.strsignal(number): 128 + number for number in signal.valid_signals()}
OUT_OF_MEMORY = 125  # by which SLURM records a task that the kernel killed for its memory
_WORDS = {**_SIGNALED, "Out Of Memory": OUT_OF_MEMORY}
_BY_SRUN = 128 + signal.SIGTERM  # how srun ends the ranks that are left


@dataclass(frozen=True)
class Attempt:
    """One start of the ranks. Its token fences: only what carries it counts."""

    job_id: str
    life: int
    number: int

    @property
    def token(self) -> str:
        """Return the text that names this start and no other."""
        return f"{self.job_id}.{self.life}.{self.number}"

    @property
    def port(self) -> int:
        """Return where the ranks meet: another one in each start, since the last may still be taken."""
        return slurm_port(int(self.job_id) + _LIFE_STRIDE * self.life + _TRY_STRIDE * self.number)

    @property
    def label(self) -> str:
        """Return the beginning of this start's log names."""
        return f"life-{self.life:03d}.try-{self.number}"


def rank_command(
    job: Job, *, attempt: Attempt, nodes: Sequence[str], directory: Path, task: int | None = None
) -> list[str]:
    """Return the argv that starts one task per rank on `nodes`; `task` is the number in a job array."""
    site = job.site
    output = f"{directory}/logs/{attempt.label}.rank-%t.log"
    program = job.program if site.container.runtime == "none" else site.container.command
    return [
        *_srun(job, nodes=nodes, tasks_per_node=site.ranks_per_node, output=output),
        *check_options(site.srun, what="srun"),
        *_container(job),
        program,
        *(part if task is None else part.replace("{task}", str(task)) for part in job.command),
    ]


def check_command(job: Job, *, nodes: Sequence[str], results: Path, output: str) -> list[str]:
    """Return the argv that checks every node of the allocation, one task each."""
    python = job.python if job.site.container.runtime == "none" else "python3"
    return [
        *_srun(job, nodes=nodes, tasks_per_node=1, output=output),
        *(option for option in job.site.srun if option.partition("=")[0] in _OF_EVERY_STEP),
        *_container(job),
        python,
        "-m",
        "cluster.node_check",
        str(results),
    ]


def rank_environment(
    job: Job, *, attempt: Attempt, nodes: Sequence[str], given: Mapping[str, str], secrets: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment that srun hands to the ranks."""
    environment = {**given, **secrets}
    environment.update(
        PYTHONPATH=job.code,
        MASTER_ADDR=nodes[0],
        MASTER_PORT=str(attempt.port),
        COATNET_ATTEMPT=attempt.token,
        # A kill during a JIT build leaves a lock that would hang every later start.
        TORCH_EXTENSIONS_DIR=f"/tmp/torch-extensions-{attempt.token}",
    )
    environment.setdefault("OMP_NUM_THREADS", str(job.site.cpus_per_task))
    return environment


@dataclass(frozen=True)
class Failure:
    """A rank that failed, as srun told it; a status above 128 is 128 and a signal."""

    node: str
    rank: int
    status: int


def failures(lines: Sequence[str]) -> list[Failure]:
    """Find the ranks that failed in srun's messages, as they come; those that srun ended are none."""
    found = []
    for line in lines:
        ended = _ENDED.fullmatch(line)
        exited = _EXITED.fullmatch(ended[3]) if ended else None
        status = int(exited[1]) if exited else _WORDS.get(ended[3]) if ended else None
        if ended and status and status != _BY_SRUN:
            found += [Failure(ended[1], rank, status) for rank in _ranks(ended[2])]
    return found


def sruns_words(lines: Sequence[str]) -> str:
    """Return what srun said first of its own failure, as where it refuses an option or starts no step."""
    said = (line.strip().removeprefix("srun: ") for line in lines if line.startswith("srun: "))
    return next(said, "").removeprefix("error: ")


def _ranks(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _srun(job: Job, *, nodes: Sequence[str], tasks_per_node: int, output: str) -> list[str]:
    return [
        "srun",
        f"--nodes={len(nodes)}",
        f"--nodelist={','.join(nodes)}",
        f"--ntasks={len(nodes) * tasks_per_node}",
        f"--ntasks-per-node={tasks_per_node}",
        f"--cpus-per-task={job.site.cpus_per_task}",
        "--kill-on-bad-exit=1",
        f"--wait={_LAUNCHER_WAIT_SECONDS}",
        "--export=ALL",
        f"--output={output}",
    ]


def _container(job: Job) -> list[str]:
    """Return what puts the ranks into a container, in the working directory, where relative paths begin."""
    container, folder = job.site.container, job.working_directory
    if container.runtime == "none":
        return []
    if not container.image:
        raise UserError(f"container.runtime is {container.runtime} without an image; give --container IMAGE")
    check_path(Path(folder), what="working directory")
    mounts = [f"{job.directory}:{job.directory}", *container.mounts, f"{folder}:{folder}"]
    if container.runtime == "pyxis":
        return [
            f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={folder}",
        ]  # fmt: skip
    binds = [part for mount in mounts for part in ("--bind", mount)]
    return ["apptainer", "exec", "--nv", *binds, "--pwd", folder, container.image]
