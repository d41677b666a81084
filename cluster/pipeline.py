"""Several jobs by one file, each after those that it needs: shard → pretrain → finetune → evaluate.

Dependencies are SLURM's own (afterok). Where a stage continues in a chain, its job's id changes from life to
life: then what follows is queued held, and the life that finishes releases it. Submitting the file again goes
on: what is done is left out, what is queued is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.job import write_job
from cluster.names import check_name
from cluster.site import SiteConfig, load_site
from cluster.submission import Prepared, Request, prepare, queued_job, submit
from coatnet.config import UserError, load_config
from coatnet.runtime.run_directory import RunDirectory


@dataclass
class StageConfig:
    """One stage: what would be typed as `coatnet COMMAND TARGET ARGUMENTS`.

    Args:
        directory: where logs and markers go, if the config names none.
        after: stages that must be done before.
        site: what differs from the site file, as `nodes: 8`.
        array: number of tasks; `{task}` in target and arguments becomes each one's number.
    """

    command: str
    target: str
    arguments: list[str] = field(default_factory=list)
    directory: str | None = None
    after: list[str] = field(default_factory=list)
    site: dict[str, Any] = field(default_factory=dict)
    array: int = 0


@dataclass
class PipelineConfig:
    """Stages by name."""

    stages: dict[str, StageConfig]

    def __post_init__(self) -> None:
        for name, stage in self.stages.items():
            unknown = [other for other in stage.after if other not in self.stages]
            if unknown:
                raise ValueError(f"stage {name} comes after {unknown[0]}; stages: {', '.join(self.stages)}")


def is_pipeline(path: Path) -> bool:
    """Return whether a file has stages; a run's config has none."""
    if path.suffix not in {".yaml", ".yml"} or not path.is_file():
        return False
    return any(line.startswith("stages:") for line in path.read_text(errors="replace").splitlines())


def prepare_pipeline(path: Path, *, site: Path | None, overrides: Sequence[str]) -> dict[str, Prepared]:
    """Return every stage's job in an order that respects `after`; nothing is written or queued.

    Raises:
        UserError: a config is wrong, or stages wait for each other.
    """
    config = load_config(PipelineConfig, path)
    base = load_site(site, overrides=overrides)
    prepared = {}
    for name in _ordered(config.stages):
        check_name(name, what="stage")
        stage = config.stages[name]
        request = Request(
            command=stage.command,
            target=_target(stage, path),
            arguments=tuple(stage.arguments),
            site=base.with_keys(stage.site, origin=f"{path}: stages.{name}.site"),
            name=name,
            directory=Path(stage.directory) if stage.directory else None,
            array=stage.array,
        )
        prepared[name] = prepare(request)
    _check_chains(config, {name: one.job.site for name, one in prepared.items()})
    return prepared


def submit_pipeline(path: Path, prepared: dict[str, Prepared]) -> dict[str, str]:
    """Queue what is not done yet and return the jobs' ids by stage; "done" for what is."""
    stages = load_config(PipelineConfig, path).stages
    jobs: dict[str, str] = {}
    held: list[str] = []
    for name, one in prepared.items():
        directory = Path(one.job.directory)
        known = "done" if RunDirectory(directory).marker("done") is not None else queued_job(directory)
        if known is None:
            chained = [
                other for other in stages[name].after if prepared[other].job.site.continuation == "chain"
            ]
            known = submit(one, options=_dependency(stages[name].after, chained, jobs))
            if one.job.site.continuation == "chain":
                slurm.hold(known)
                held.append(known)
            for other in chained:
                _add_dependent(prepared[other], known)
        jobs[name] = known
    for job_id in held:
        slurm.release(job_id)
    return jobs


def _dependency(after: Sequence[str], chained: Sequence[str], jobs: dict[str, str]) -> tuple[str, ...]:
    if any(jobs[name] != "done" for name in chained):
        return ("--hold",)
    waiting = [jobs[name] for name in after if jobs[name] != "done"]
    return (f"--dependency=afterok:{':'.join(waiting)}", "--kill-on-invalid-dep=yes") if waiting else ()


def _add_dependent(prepared: Prepared, job_id: str) -> None:
    prepared.job.dependents.append(job_id)
    if prepared.folder.is_dir():
        write_job(prepared.job, prepared.folder / "job.json")


def _ordered(stages: dict[str, StageConfig]) -> list[str]:
    order: list[str] = []
    while len(order) < len(stages):
        ready = [
            name for name, stage in stages.items() if name not in order and set(stage.after) <= set(order)
        ]
        if not ready:
            waiting = [name for name in stages if name not in order]
            raise UserError(f"the stages {', '.join(waiting)} wait for each other")
        order += ready
    return order


def _target(stage: StageConfig, path: Path) -> str:
    """Return the target; a config is looked for beside the pipeline's file first."""
    beside = path.parent / stage.target
    return str(beside) if stage.target.endswith((".yaml", ".yml")) and beside.is_file() else stage.target


def _check_chains(config: PipelineConfig, sites: dict[str, SiteConfig]) -> None:
    for name, stage in config.stages.items():
        chained = [other for other in stage.after if sites[other].continuation == "chain"]
        if chained and len(stage.after) > 1:
            raise UserError(
                f"stage {name} comes after {', '.join(stage.after)}, but {chained[0]} continues as a chain; "
                "a stage can wait for one chain and nothing else"
            )
