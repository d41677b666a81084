"""A job array as one run: what became of its tasks, by what each left in its own folder. Asks no queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from cluster.history import LIVES_FILE, History
from cluster.job import filed_job
from coatnet.runtime.run_directory import RunDirectory

# The first of these that a task is in is the array's: what may still go on, then what somebody must mend.
_ORDER = (
    "lost", "requeued", "waiting", "stopped", "failed", "held", "out_of_memory", "node_fail", "timeout",
    "preempted", "cancelled",
)  # fmt: skip
_PREFIX = "task-"
TaskState = Callable[[RunDirectory], tuple[str, str]]


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


def array_state(directory: Path, folders: Iterable[Path], *, state_of: TaskState) -> tuple[str, str]:
    """Return the array's state and how many of its tasks are in which, with the first trouble's reason.

    Args:
        state_of: tells a task's state and reason.
    """
    found = [(_number(path), *state_of(RunDirectory(path))) for path in folders]
    counts = Counter(state for _, state, _ in found)
    filed = filed_job(directory)
    total = max(filed.array if filed else 0, len(found))
    done = counts.pop("done", 0)
    words = [f"{done} of {total} tasks done", *(f"{count} {state}" for state, count in counts.items())]
    if total > len(found):
        words.append(f"{total - len(found)} never began")
    state = next((one for one in _ORDER if counts[one]), "ended")
    reasons = [f"task {number}: {reason}" for number, one, reason in found if one == state and reason]
    reason = f" ({reasons[0]})" if reasons else ""
    return state, f"{', '.join(words)}{reason}; submit again for the others"


def log_names(directory: Path) -> tuple[Path, list[str]]:
    """Return the folder above a task's and the names that its job's log may have there, newest first."""
    ids = [*History(directory.parent).job_ids(), *History(directory).job_ids()]
    return directory.parent, [f"{job_id}_{_number(directory)}" for job_id in reversed(ids)]


def is_task(directory: Path) -> bool:
    """Say whether this is the folder of an array's task."""
    return directory.name.startswith(_PREFIX) and directory.name.removeprefix(_PREFIX).isdecimal()


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))
