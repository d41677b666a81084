"""Submit a job: check what SLURM would refuse only later, write the submission's folder, call sbatch."""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.admission import RELEASABLE, check_limits, check_run, check_start, still_queued
from cluster.history import History
from cluster.job import MARKERS, SCRIPT, STATUS, SUBMISSIONS, Job, filed_job, write_job
from cluster.launch import Attempt, rank_command
from cluster.names import NAME, check, check_path
from cluster.planning.estimate import make_plan
from cluster.planning.hardware import load_hardware
from cluster.planning.plan import Plan
from cluster.planning.recipe_view import view
from cluster.progress import newest_step
from cluster.recipe import check_command, read_recipe, schema_names
from cluster.script import render_script
from cluster.site import SiteConfig, read_secrets
from cluster.snapshot import snapshot_code, snapshot_folder
from coatnet.config import UserError, to_dict, to_yaml
from coatnet.runtime.run_directory import RunDirectory, write_atomically

_NO_SUCH_NODE = (
    "no node is like that: ask for fewer --gpus-per-node, "
    "or for less by --set cpus_per_task=N, --set memory=SIZE"
)
_LIMITS = "so many jobs, or one so large or long, are not allowed to you here: end others, or ask for less"
# What sbatch says, and what to do about it; the first that fits.
_REMEDIES = {
    "accounting/QOS policy": _LIMITS,
    "Limit": _LIMITS,  # AssocMaxSubmitJobLimit, QOSMaxWallDurationPerJobLimit, …
    "generic resource": "no such GPUs here (sinfo -o %G shows them); --gpus-per-node 0 asks for none",
    "account": "give one that is yours by --account, or `account` in the site file",
    "qos": "give one that the partition allows by --qos, or `qos` in the site file",
    "job array specification": "`scontrol show config` tells MaxArraySize; submit several arrays",
    "CPU count per node": _NO_SUCH_NODE,
    "Memory specification": _NO_SUCH_NODE,
    "default partition": "give one by --partition, or `partition` in the site file; sinfo -s shows them",
    "node configuration": f"{_NO_SUCH_NODE}, or exclude fewer",
    "feature specification": "no node has these; sinfo -o %f shows those that there are",
    "node name": "there is none of that name; sinfo -N shows them",
    "--mem specification": "write it as 200G",
}


@dataclass(frozen=True)
class Request:
    """What a user asked for.

    Args:
        command: "pretrain", "finetune", or another command of coatnet ("shard", "evaluate").
        target: the config, or the command's first argument.
        arguments: overrides, or the command's further arguments.
        directory: the run directory, where the config does not name one.
    """

    command: str
    target: str
    arguments: tuple[str, ...]
    site: SiteConfig
    name: str | None = None
    directory: Path | None = None
    array: int = 0


@dataclass(frozen=True)
class Prepared:
    """A job that could be submitted: all in memory, nothing written yet.

    Args:
        folder: of the submission.
        config: a training run's, as its owner's dataclass; None for other commands.
        directory_is_given: whether the user named the run directory, and not the config alone.
    """

    job: Job
    folder: Path
    config: Any = None
    directory_is_given: bool = True

    @property
    def script(self) -> str:
        """Return the batch script."""
        return render_script(self.job, job_file=self.folder / "job.json")

    @property
    def run(self) -> RunDirectory:
        """Return the run's directory."""
        return RunDirectory(self.job.directory)

    def check(self) -> None:
        """Refuse what the ranks would only refuse in the job.

        Raises:
            UserError: they would.
        """
        check_start(self.config, run=self.run, world_size=self.job.site.world_size)


def prepare(request: Request) -> Prepared:
    """Turn a request into a job; reads the config, writes nothing.

    Raises:
        UserError: a name, a path or the config is wrong.
    """
    trains = request.command in schema_names()
    if not trains:
        check_command(request.command)
    config = _read_config(request) if trains else None
    if config is not None:
        directory = Path(config.run.directory)
    elif request.directory is not None:
        directory = request.directory
    else:
        raise UserError(f"{request.command} needs --directory: where its logs and markers go")
    directory = check_path(directory, what="run directory")
    site = request.site if trains else _single_task(request)
    folder = _next_folder(directory)
    # a folder may be called lr=0.1, which no job may
    name = request.name or re.sub(r"[^\w.-]+", "-", directory.name).strip("._-")[:64] or request.command
    if trains:
        command = [request.command, str(folder / "config.yaml"), f"run.directory={directory}"]
    else:
        command = [request.command, request.target, *request.arguments]
    job = Job(
        name=check(name, NAME, what="job name"),
        directory=str(directory),
        command=command,
        python=sys.executable,
        program=str(Path(sys.executable).parent / "coatnet"),
        code=str(snapshot_folder(folder.parent)),
        working_directory=str(Path.cwd()),
        protocol=MARKERS if trains else STATUS,
        site=site,
        array=request.array,
        shards=_shards(config),
    )
    # a mistake in what srun will be given is told here, and not in the job
    rank_command(job, attempt=Attempt("1", 1, 1), nodes=["node"], directory=directory)
    return Prepared(job, folder, config, directory_is_given=_gives_directory(request))


def _gives_directory(request: Request) -> bool:
    words = (word.startswith("run.directory=") for word in request.arguments)
    return request.directory is not None or any(words)


def _read_config(request: Request) -> Any:
    """Return the config of a training run, with its directory."""
    if request.array:
        raise UserError(
            f"--array {request.array}: tasks of an array would train in one run directory; submit runs"
        )
    given = [f"run.directory={request.directory}"] if request.directory else []
    config = read_recipe(request.command, Path(request.target), overrides=[*request.arguments, *given])
    if not config.run.directory.strip("."):
        raise UserError(
            f"{request.target}: run.directory must be given to submit, as run.directory=runs/NAME"
        )
    return config


def directory_note(prepared: Prepared) -> str:
    """Return where the run goes if the user did not say so, which is to be told before it is queued."""
    if prepared.directory_is_given:
        return ""
    step = newest_step(prepared.run.path)
    goes_on = f", where a run goes on from step {step}" if step >= 0 else ""
    return f"run.directory is not given; the config's own is {prepared.config.run.directory}{goes_on}"


def corpora_notes(prepared: Prepared) -> list[str]:
    """Return which corpora this machine does not see: a mistake, or such as only the nodes have."""
    notes = []
    for path in prepared.job.shards:
        if os.path.exists(path):  # not where somebody may not look
            continue
        (folder, name), near = os.path.split(path), []
        with suppress(OSError):
            near = difflib.get_close_matches(name, {*os.listdir(folder)} - {name}, n=1)
        hint = f" (there is {os.path.join(folder, near[0])})" if near else ""
        notes.append(f"{path} is not here{hint}; the nodes will look for it before the first step")
    return notes


def preview(prepared: Prepared) -> str:
    """Return the batch script that `submit` would hand to SLURM now; nothing is written.

    Raises:
        UserError: the job itself would refuse to begin.
    """
    prepared.check()
    return prepared.script


def submit(prepared: Prepared, *, release: bool = False, options: tuple[str, ...] = ()) -> str:
    """Write the submission's folder, call sbatch and return the job's id.

    Args:
        release: go on although the run was held or cancelled.

    Raises:
        UserError: the run is finished, held or already in the queue, or SLURM refuses the job.
    """
    directory, site = prepared.run.path, prepared.job.site
    # What may not stand in plan or script is told before anything is written.
    plan, text = _plan(prepared), prepared.script
    check_limits(site)
    prepared.check()
    if site.secrets_file:
        read_secrets(Path(site.secrets_file))
    # Without this folder SLURM fails the job and leaves no log.
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    with _submitting(directory) as lock:
        check_run(directory, release=release)
        if _next_folder(directory) != prepared.folder:
            raise UserError(f"{directory} was submitted by another just now; look at it, then try again")
        if plan is not None:
            write_atomically(prepared.run.plan, json.dumps(plan.to_dict(), indent=2) + "\n")
        earlier = filed_job(directory)
        if earlier is not None:  # what is held behind the run still waits for it
            prepared.job.dependents = still_queued(earlier.dependents)
            prepared.job.later = still_queued(earlier.later)
        script = _write(prepared, text)
        history = History(directory)
        lives = len(history.lives())  # before: the job may begin its life while we still write
        job_id = _queue(prepared, script, options=options, lock=lock)
        try:
            told = {"folder": prepared.folder.name, "lives": lives, "continuation": site.continuation}
            history.note("submitted", job_id=job_id, **told)
        except OSError as error:  # neither cancel nor a second submission would find it
            slurm.cancel_job(job_id)
            shutil.rmtree(prepared.folder)
            raise UserError(
                f"{directory}: {error.strerror}; job {job_id}, which could not be recorded, was cancelled; "
                "make room, then submit again"
            ) from None
    return job_id


def _write(prepared: Prepared, text: str) -> Path:
    """Write the submission's folder, with a copy of the code beside it, and return the batch script.

    Raises:
        UserError: it could not be written; nothing is left of it.
    """
    folder = prepared.folder
    script = folder / SCRIPT
    try:
        folder.mkdir(parents=True)
        snapshot_code(Path(prepared.job.code))
        write_job(prepared.job, folder / "job.json")
        if prepared.config is not None:
            (folder / "config.yaml").write_text(to_yaml(prepared.config))
        script.write_text(text)
    except OSError as error:  # copying the code names our file, whatever is wrong with the run's disk
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{prepared.run.path}: {error.strerror}; mend that, then submit again") from None
    return script


def _queue(prepared: Prepared, script: Path, *, options: tuple[str, ...], lock: int) -> str:
    """Hand the script to SLURM and return the job's id.

    Raises:
        UserError: SLURM refuses it, or may have taken it without saying so.
    """
    try:
        with _released(prepared.run):
            return slurm.sbatch(str(script), *options, keep_open=[lock])
    except slurm.PerhapsSubmitted as error:
        raise UserError(
            f"{error}; whether SLURM took the job is not known: look at coatnet status {prepared.run.path} "
            "in a minute, and submit again if it tells of no job"
        ) from None
    except slurm.SlurmError as error:
        shutil.rmtree(prepared.folder)  # what SLURM refused was not submitted
        raise UserError(f"{error}{_remedy(str(error))}") from None


@contextmanager
def _released(run: RunDirectory) -> Iterator[None]:
    """Take away the markers that a job would end by; they come back if SLURM takes none."""
    found = {name: fields for name in RELEASABLE if (fields := run.marker(name)) is not None}
    for name in found:
        run.clear(name)
    try:
        yield
    except slurm.PerhapsSubmitted:
        raise
    except slurm.SlurmError:
        for name, fields in found.items():
            run.mark(name, **fields)
        raise


@contextmanager
def _submitting(directory: Path) -> Iterator[int]:
    """Let one submission of a run at a time look at the queue and add to it.

    Yields the lock: whoever has its descriptor holds it.

    Raises:
        UserError: another one is under way.
    """
    with (directory / ".submitting").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another submission is under way; wait for it") from None
        except OSError:
            pass  # a file system without locks
        yield file.fileno()


def _plan(prepared: Prepared) -> Plan | None:
    """Return what the run is predicted to do, where the site names its hardware.

    Raises:
        UserError: the global batch does not divide over the ranks.
    """
    site = prepared.job.site
    if prepared.config is None or site.hardware is None:
        return None
    init = getattr(prepared.config, "init", None)
    if init is not None and _is_to_come(Path(init)):
        return None
    recipe = view(to_dict(prepared.config), origin=prepared.job.directory)
    hardware = load_hardware(site.hardware, gpus_per_node=site.ranks_per_node)
    return make_plan(recipe, hardware=hardware, nodes=site.nodes)


def _is_to_come(model: Path) -> bool:
    """Return whether a job is to make this model, an earlier stage of a pipeline."""
    submitted = (model / "submissions").is_dir() and not RunDirectory(model).find_checkpoints()
    return submitted or not model.exists()


def _remedy(message: str) -> str:
    return next((f"; {remedy}" for words, remedy in _REMEDIES.items() if words in message), "")


def _single_task(request: Request) -> SiteConfig:
    """Return the resources of a command that spreads over a node by itself; GPUs only to evaluate."""
    gpus = 0 if request.command == "shard" else request.site.gpus_per_node
    preflight = replace(request.site.preflight, enabled=False)
    return replace(request.site, nodes=1, spares=0, tasks_per_node=1, gpus_per_node=gpus, preflight=preflight)


def _next_folder(directory: Path) -> Path:
    folder = directory / SUBMISSIONS
    taken = (int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
    return folder / f"{max(taken, default=0) + 1:04d}"


def _shards(config: Any) -> list[str]:
    """Return the folders of the local corpora that a config names, to train on first."""
    if config is None:
        return []
    paths = (*(corpus.path for corpus in config.data.train), config.data.evaluate)
    return list(dict.fromkeys(os.path.abspath(path) for path in paths if path and "://" not in path))
