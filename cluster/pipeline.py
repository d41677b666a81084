"""Several jobs by one file, each after those that it needs: shard → pretrain → finetune → evaluate.

Dependencies are SLURM's own (afterok). Where a stage continues in a chain, its job's id changes from life to
life: then what follows is queued held, the stage's job file names it, and the life that finishes releases it.
Submitting the file again goes on: what is done is left out, what is queued is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.admission import queued_job, still_queued
from cluster.after import dependency, is_chain
from cluster.job import amended_job, newest_job_file
from cluster.names import NAME, check
from cluster.site import SiteConfig
from cluster.submission import Prepared, Request, prepare, submit
from coatnet.config import UserError, load_config


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


def prepare_pipeline(path: Path, *, site: SiteConfig) -> dict[str, Prepared]:
    """Return every stage's job in an order that respects `after`; nothing is written or queued.

    Args:
        site: what all stages ask for, where their own `site` says nothing else.

    Raises:
        UserError: a config is wrong, or stages wait for each other.
    """
    config = load_config(PipelineConfig, path)
    prepared = {}
    for name in _ordered(config.stages):
        check(name, NAME, what="stage")
        stage = config.stages[name]
        request = Request(
            command=stage.command,
            target=_target(stage, path),
            arguments=tuple(stage.arguments),
            site=site.with_keys(stage.site, origin=f"{path}: stages.{name}.site"),
            name=name,
            directory=Path(stage.directory) if stage.directory else None,
            array=stage.array,
        )
        try:
            prepared[name] = prepare(request)
            if not _is_done(prepared[name]):
                prepared[name].check()  # none is queued if a later one is wrong
        except UserError as error:
            raise UserError(f"{path}: stage {name}: {error}") from None
    _check_directories(prepared)
    _check_chains(config, {name: one.job.site for name, one in prepared.items()})
    return prepared


def submit_pipeline(path: Path, prepared: dict[str, Prepared], *, release: bool = False) -> dict[str, str]:
    """Queue what is not done yet and return the jobs' ids by stage; "done" for what is.

    Args:
        release: go on with stages that were held or cancelled.

    Raises:
        UserError: SLURM refuses a stage; those before it are queued, and run.
    """
    stages = load_config(PipelineConfig, path).stages
    jobs: dict[str, str] = {}
    queued = {name: queued_job(Path(one.job.directory)) or "" for name, one in prepared.items()}
    chains = {name for name, one in prepared.items() if _is_chain(one, is_queued=bool(queued[name]))}
    held: list[str] = []
    try:
        for name, one in prepared.items():
            jobs[name] = "done" if _is_done(one) else queued[name]
            if jobs[name] not in {"done", ""} and (name in chains or chains & set(stages[name].after)):
                held.append(name)  # perhaps, by an earlier submission
            if not jobs[name]:
                waiting = [other for other in stages[name].after if jobs[other] != "done"]
                options = dependency([jobs[other] for other in waiting if other not in chains])
                one.job.held_behind = [prepared[other].job.directory for other in waiting if other in chains]
                if name in chains or one.job.held_behind:
                    options = (*options, "--hold")
                    held.append(name)
                jobs[name] = submit(one, release=release, options=options)
    finally:
        jobs = {name: job_id for name, job_id in jobs.items() if job_id}
        _tell_chains(stages, prepared, jobs, chains)
        for name in held:  # a chain may be done by now, and have seen nobody behind it
            if name in jobs and all(_is_done(prepared[other]) for other in chains & set(stages[name].after)):
                slurm.release(jobs[name])
    return jobs


def _is_done(prepared: Prepared) -> bool:
    return prepared.run.marker("done") is not None


def _is_chain(prepared: Prepared, *, is_queued: bool) -> bool:
    """Return how a stage goes on: one that is queued as it was submitted, whatever the file says by now."""
    return is_chain(prepared.run.path) if is_queued else prepared.job.site.continuation == "chain"


def _tell_chains(
    stages: dict[str, StageConfig], prepared: dict[str, Prepared], jobs: dict[str, str], chains: set[str]
) -> None:
    """Write into the stages' job files which held jobs are behind them."""
    held = [name for name, job_id in jobs.items() if job_id != "done" and chains & set(stages[name].after)]
    for name in jobs:
        behind = [other for other in held if name in _all_before(other, stages)]
        job_file = newest_job_file(Path(prepared[name].job.directory))
        if behind and job_file is not None:
            right_behind = [other for other in behind if name in chains and name in stages[other].after]
            ids = [jobs[other] for other in right_behind]
            further = [jobs[other] for other in behind if other not in right_behind]
            with amended_job(job_file) as job:  # some that were held before may stand in no pipeline
                job["dependents"] = [*dict.fromkeys([*still_queued(job["dependents"]), *ids])]
                job["later"] = [*dict.fromkeys([*still_queued(job["later"]), *further])]


def _all_before(name: str, stages: dict[str, StageConfig]) -> set[str]:
    before = set(stages[name].after)
    return before.union(*(_all_before(other, stages) for other in before))


def _ordered(stages: dict[str, StageConfig]) -> list[str]:
    try:
        return [*TopologicalSorter({name: stage.after for name, stage in stages.items()}).static_order()]
    except CycleError as error:
        raise UserError(f"the stages {', '.join(sorted(set(error.args[1])))} wait for each other") from None


def _target(stage: StageConfig, path: Path) -> str:
    """Return the target; a config is looked for beside the pipeline's file first."""
    beside = path.parent / stage.target
    return str(beside) if stage.target.endswith((".yaml", ".yml")) and beside.is_file() else stage.target


def _check_directories(prepared: dict[str, Prepared]) -> None:
    whose: dict[Path, str] = {}
    for name, one in prepared.items():
        other = whose.setdefault(one.run.path, name)
        if other != name:
            raise UserError(
                f"stages {other} and {name} have one run directory, {one.run.path}; give each its own"
            )


def _check_chains(config: PipelineConfig, sites: dict[str, SiteConfig]) -> None:
    for name, stage in config.stages.items():
        chained = [other for other in stage.after if sites[other].continuation == "chain"]
        if chained and len(stage.after) > 1:
            raise UserError(
                f"stage {name} comes after {', '.join(stage.after)}, but {chained[0]} continues as a chain; "
                "a stage can wait for one chain and nothing else"
            )
