"""A submission on disk: everything that the batch script's supervisor needs, as JSON in the run directory.

`submissions/0001/` holds job.json, script.sh, config.yaml and the snapshot of the code. A new submission of
the same run is a new folder, so an old life always finds what it was started with.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.site import SiteConfig
from coatnet.config import ConfigError, UserError, from_dict

# How the end of a command is told: by the markers of a training run, or by its exit status alone.
MARKERS, STATUS = "markers", "status"
SUBMISSIONS, SCRIPT = "submissions", "script.sh"  # in the run directory; in a submission's folder
JOB_FILES = f"{SUBMISSIONS}/[0-9]*/job.json"


@dataclass
class Job:
    """One job of one run directory.

    Args:
        name: SLURM's job name.
        directory: the run directory.
        command: a rank's argv behind `coatnet`, as `["pretrain", "config.yaml", "run.directory=..."]`.
        protocol: "markers" for training; "status" for commands that resume by being started again.
        python, program: interpreter and `coatnet` executable on the nodes, outside any container.
        code: folder put before the installed packages.
        working_directory: where relative paths of the config start.
        shards: the local corpora to train on and to evaluate by, which the preflight tries to read.
        array: number of tasks of a job array, 0 for an ordinary job.
        dependents: held jobs right behind this one (pipelines in chain mode): its end releases them, or
            cancels them.
        later: held jobs further behind, which only a failure is of any concern to.
        held_behind: run directories of the chains that this job, submitted held, waits for.
    """

    name: str
    directory: str
    command: list[str]
    protocol: str = MARKERS
    site: SiteConfig = field(default_factory=SiteConfig)
    python: str = ""
    program: str = ""
    code: str = ""
    working_directory: str = ""
    array: int = 0
    shards: list[str] = field(default_factory=list)
    dependents: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    held_behind: list[str] = field(default_factory=list)


def write_job(job: Job, path: Path) -> None:
    """Write a job for `read_job`, whole at any moment; the file is its owner's alone."""
    _write(dataclasses.asdict(job), path)


def _write(values: Mapping[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)


@contextmanager
def amended_job(path: Path) -> Iterator[dict[str, Any]]:
    """Let a job's fields be changed that was submitted before, by other code perhaps.

    That code reads the file again in its next life: what this version has more, or less, stays out of it.
    """
    values = json.loads(path.read_text())
    yield values
    _write(values, path)


def read_job(path: Path, *, by_other_code: bool = False) -> Job:
    """Read a job back. Its command is data: what looks like an interpolation there stays as it is.

    Args:
        by_other_code: it may have been written by that, whose keys that this version lacks are passed over.

    Raises:
        ConfigError: it is not a job file of this version.
    """
    try:
        values = json.loads(path.read_text())
        if by_other_code:
            values = _known(values, Job("", "", []))
        values["site"] = from_dict(SiteConfig, values["site"], origin=str(path))
        return Job(**values)
    except (AttributeError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{path}: no job file of this version of coatnet; submit the run again") from None


def newest_job_file(directory: Path) -> Path | None:
    """Return the job file of a run's last submission, None where it was never submitted."""
    return max(directory.glob(JOB_FILES), default=None)


def newest_job(directory: Path) -> Job | None:
    """Return what was submitted last of a run, None where it was never submitted.

    Raises:
        OSError, ConfigError: its file cannot be read; a colleague's, say.
    """
    job_file = newest_job_file(directory)
    return None if job_file is None else read_job(job_file, by_other_code=True)


def filed_job(directory: Path) -> Job | None:
    """Return the same, None also where that is not to be read."""
    try:
        return newest_job(directory)
    except (OSError, UserError):
        return None


def _known(values: Mapping[str, Any], like: Any) -> dict[str, Any]:
    """Return the values whose keys a section has, and so in the sections below it."""
    found = {}
    for key in (one.name for one in dataclasses.fields(like) if one.name in values):
        section = getattr(like, key)
        found[key] = _known(values[key], section) if dataclasses.is_dataclass(section) else values[key]
    return found
