"""Submit stand-in jobs to the fake cluster and read what became of them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.after import submit_after
from cluster.array import job_ids
from cluster.history import History, Life
from cluster.job import Job
from cluster.pipeline import prepare_pipeline, submit_pipeline
from cluster.site import PreflightConfig, SiteConfig
from cluster.snapshot import snapshot_folder
from cluster.submission import Prepared, Request, prepare, submit

from fake_cluster import FakeCluster
from stand_in import fold

_ARRAY_TASK = """\
if [ "$2" = output-%d ] && [ ! -e begun ]; then touch begun; sleep 60 || exit; fi
echo "$1" > "$2"
"""
# Twelve parts of half a second, each of which is done once.
_STAGE = """\
echo "begins $(basename "$2")" >> order
for part in a b c d e f g h i j k l; do [ -e "$2/$part" ] || { sleep 0.5; touch "$2/$part"; }; done
echo "ends $(basename "$2")" >> order
"""
STAND_IN = Path(__file__).with_name("stand_in.py")
SITE = {"nodes": 2, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 1, "time": "00:30:00"}


@dataclass
class Run:
    """One run of the stand-in."""

    cluster: FakeCluster
    directory: Path
    steps: int
    job_id: str = ""

    @property
    def value(self) -> int:
        """Return the weights of the newest checkpoint."""
        found = [json.loads(path.read_text()) for path in self.directory.glob("checkpoints/*/manifest.json")]
        return max(found, key=lambda manifest: manifest["step"])["value"]

    @property
    def expected(self) -> int:
        """Return the weights of a run that nothing happened to."""
        value = 1
        for step in range(self.steps):
            value = fold(value, step)
        return value

    @property
    def lives(self) -> list[Life]:
        """Return the lives so far."""
        return History(self.directory).lives()

    def marker(self, name: str) -> dict[str, Any] | None:
        """Return a marker's content."""
        path = self.directory / name
        return json.loads(path.read_text()) if path.exists() else None

    def step(self) -> int:
        """Return the last step that any attempt took."""
        log = self.directory / "steps.log"
        return int(log.read_text().splitlines()[-1].split()[0]) if log.exists() and log.stat().st_size else -1

    def reach(self, step: int, *, seconds: float = 60) -> None:
        """Wait until the run has taken `step`."""

        def reached() -> bool:
            state = self.cluster.state(self.job_id)
            assert state not in {"FAILED", "CANCELLED"}, self.log()
            return self.step() >= step

        self.cluster.wait_for(reached, seconds=seconds, what=f"step {step}")

    def ends(self, *states: str, seconds: float = 90) -> str:
        """Wait for the job's end."""
        return self.cluster.wait_for_state(self.job_id, *states, seconds=seconds)

    def has_ended(self) -> bool:
        """Return whether no job of the run waits or runs."""
        jobs = slurm.jobs_of(job_ids(self.directory), slurm.queue())
        return not any(job.is_alive for job in jobs)

    def log(self) -> str:
        """Return what the supervisors wrote."""
        return "".join(path.read_text() for path in sorted(self.directory.glob("logs/job-*.log")))


def failing_on(nodes: str, folder: Path) -> PreflightConfig:
    """Return checks of which a site's own fails on the nodes of a pattern of the shell."""
    script = folder / "check"
    script.write_text(
        f'#!/bin/sh\ncase "$SLURMD_NODENAME" in {nodes}) echo this node is bad; exit 1;; esac\n'
    )
    script.chmod(0o755)
    return PreflightConfig(free_space_bytes=1, shared_memory_bytes=1, commands=[[str(script)]])


def _program(directory: Path) -> Path:
    """Write the executable that the ranks start: the stand-in under this interpreter."""
    path = directory / "stand-in"
    path.write_text(
        f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(STAND_IN)!r}, run_name='__main__')\n"
    )
    path.chmod(0o755)
    return path


def start(
    cluster: FakeCluster,
    directory: Path,
    *,
    steps: int = 100,
    options: tuple[str, ...] = (),
    after: Path | None = None,
    **site: Any,
) -> Run:
    """Submit a stand-in run, behind another perhaps; `site` overrides keys of the site file."""
    os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
    run = Run(cluster, directory, steps)
    resubmit(run, options=options, after=after, **site)
    return run


def resubmit(
    run: Run,
    *,
    release: bool = False,
    options: tuple[str, ...] = (),
    after: Path | None = None,
    **site: Any,
) -> None:
    """Submit a run, at first or again, in another layout or behind another run perhaps."""
    site.setdefault("preflight", PreflightConfig(enabled=False))
    directory = run.directory
    directory.mkdir(exist_ok=True)
    job = Job(
        name="stand-in",
        directory=str(directory),
        command=["train", str(directory), f"steps={run.steps}", *options],
        site=SiteConfig(**{**SITE, **site}),
        python=sys.executable,
        program=str(_program(directory)),
        code=str(snapshot_folder(directory / "submissions")),
        working_directory=str(directory),
    )
    earlier = len(list(directory.glob("submissions/[0-9]*")))
    folder = directory / "submissions" / f"{earlier + 1:04d}"
    prepared = Prepared(job, folder)
    run.job_id = submit_after(after, prepared) if after else submit(prepared, release=release)


def start_array(
    cluster: FakeCluster, directory: Path, *, tasks: int, continuation: str = "requeue", waits: int = 0
) -> Run:
    """Submit an array whose tasks each write a file, the one that `waits` only in its second life."""
    os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
    directory.mkdir()
    site = _site(continuation=continuation)
    request = Request("shard", "output-{task}", (), site, directory=directory, array=tasks)
    prepared = prepare(request)
    prepared.job.program = str(_shell(directory, _ARRAY_TASK % waits))
    prepared.job.working_directory = str(directory)
    return Run(cluster, directory, 0, submit(prepared))


def start_pipeline(cluster: FakeCluster, folder: Path, *, order: Path) -> dict[str, str]:
    """Submit three stages, the first two of them as chains, and return their jobs."""
    os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
    after: dict[str, list[str]] = {"first": [], "middle": ["first"], "last": ["middle"]}
    modes = {"first": "chain", "middle": "chain", "last": "requeue"}
    return submit_stages(cluster, folder, after=after, modes=modes, line=f'echo "$2" >> {order}')


def submit_stages(
    cluster: FakeCluster,
    folder: Path,
    *,
    after: dict[str, list[str]],
    modes: dict[str, str],
    line: str = _STAGE,
    release: bool = False,
) -> dict[str, str]:
    """Submit stages that come after each other, at first or again, and return their jobs.

    Args:
        after: the stages, each with those before it.
        modes: how each continues.
        line: what each does, as shell, with its name as the second argument.
    """
    stage = "{command: evaluate, target: %s, directory: %s, after: [%s], site: {continuation: %s, %s}}"
    plain = "gpus_per_node: 0, cpus_per_task: 1, time: '00:30:00'"
    lines = ["stages:"] + [
        f"  {name}: " + stage % (name, folder / name, ", ".join(before), modes[name], plain)
        for name, before in after.items()
    ]
    path = folder / "pipeline.yaml"
    path.write_text("\n".join(lines) + "\n")
    prepared = prepare_pipeline(path, site=SiteConfig())
    program = _shell(folder, line)
    for one in prepared.values():
        one.job.program, one.job.working_directory = str(program), str(folder)
    return submit_pipeline(path, prepared, release=release)


def _shell(folder: Path, line: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def _site(**changes: Any) -> SiteConfig:
    return SiteConfig(**{**SITE, "preflight": PreflightConfig(enabled=False), **changes})
