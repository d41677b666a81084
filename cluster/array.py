"""A job array as one run: its tasks, each of which has a folder of its own. Asks no queue."""

from __future__ import annotations

from pathlib import Path

from cluster.history import LIVES_FILE, History

_PREFIX = "task-"


def task_folder(directory: Path, number: int) -> Path:
    """Return a task's own folder in the array's run directory."""
    return directory / f"{_PREFIX}{number:04d}"


def task_folders(directory: Path) -> list[Path]:
    """Return the folders of the tasks that have begun, in order; none where the run is no array."""
    folders = (path.parent for path in directory.glob(f"{_PREFIX}*/{LIVES_FILE}"))
    return sorted(folder for folder in folders if is_task(folder))


def job_ids(directory: Path) -> list[str]:
    """Return every job of a run, oldest first; where it is an array, also its tasks' successors."""
    histories = [History(directory), *map(History, task_folders(directory))]
    return list(dict.fromkeys(job_id for history in histories for job_id in history.job_ids()))


def log_names(directory: Path) -> tuple[Path, list[str]]:
    """Return the folder above a task's and the names that its job's log may have there, newest first."""
    ids = [*History(directory.parent).job_ids(), *History(directory).job_ids()]
    return directory.parent, [f"{job_id}_{task_number(directory)}" for job_id in reversed(ids)]


def is_task(directory: Path) -> bool:
    """Say whether this is the folder of an array's task."""
    return directory.name.startswith(_PREFIX) and directory.name.removeprefix(_PREFIX).isdecimal()


def task_number(folder: Path) -> int:
    """Return a task's number by its folder."""
    return int(folder.name.removeprefix(_PREFIX))
