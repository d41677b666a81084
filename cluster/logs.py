"""The logs of a run, across lives and ranks, as one stream. Asks no queue.

The first rank of a run that was started by hand writes to its terminal; what it reported stands in for that.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.array import is_task
from cluster.history import was_submitted
from coatnet.config.plain_text import is_number
from coatnet.runtime.lease import is_held, newest_epoch
from coatnet.runtime.run_directory import RunDirectory, parse_lines

_POLL_SECONDS = 0.3
_PAUSES = 9  # where to look takes long, as at the tasks of a large array, it takes a tenth of the time
_LONGEST_PAUSE_SECONDS = 5.0
_TAIL_BYTES = 1 << 16
_START_SECONDS = 60.0  # from the command to the lease: importing torch from a busy file system
_TOLD = ("train/loss", "images_per_second")
_CHUNK_BYTES = 1 << 20
_RANK_LOG_BY_HAND = re.compile(r"rank(\d+)\.log")
_RANK_LOG = re.compile(r"life-(\d+)\.try-(\d+)\.(?:rank-(\d+)|preflight-\d+)\.log")


def read_logs(
    directory: Path, *, rank: int | None, tail: int, follow: bool, finished: Callable[[], bool]
) -> Iterator[str]:
    """Yield lines, each headed by its source.

    Args:
        rank: only this rank and no job log; None for rank 0 and the job's log.
        tail: so many last lines of what is there; 0 for all.
        follow: go on with what is added, until `finished` says so.

    Raises:
        OSError: there are logs that cannot be read.
    """
    with suppress(FileNotFoundError):
        os.listdir(directory / "logs")  # what cannot be looked into is no folder without logs
    positions: dict[Path, int] = {}
    files = _files(directory, rank=rank)
    over = _past(files)
    if tail:
        yield from _last_lines(files, positions, count=tail, over=over)
    else:
        for path in files:
            yield from _new_lines(path, positions)
    while follow:
        looked_at = time.monotonic()
        ended = finished()  # asked before reading, so that the last lines are read after the end
        files = _files(directory, rank=rank)
        for path in files:
            if path not in over:
                yield from _new_lines(path, positions)
        over |= _past(files)
        if ended:
            return
        took = time.monotonic() - looked_at  # for lines as well, whose reader may be in no hurry
        time.sleep(min(max(_POLL_SECONDS, _PAUSES * took), _LONGEST_PAUSE_SECONDS))


def _files(directory: Path, *, rank: int | None) -> list[Path]:
    """Return the logs in the order of their lives, then the jobs' own, which tell how they ended."""
    folders = [directory / "logs", *directory.glob("task-*/logs")]
    wanted = [folder / name for folder in folders for name in _names(folder) if _is_wanted(name, rank=rank)]
    if rank is None and not was_submitted(directory):
        run = RunDirectory(directory)
        wanted += [path for path in (run.metrics, run.events) if path.exists()]
    return sorted(wanted, key=_place)


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return os.listdir(folder)
    return []


def _place(path: Path) -> tuple[int, tuple[int, int], str, str]:
    changed = path.stat().st_ctime_ns if path.name.startswith("job-") else 0
    return changed, _start(path), path.name, str(path)


def _start(path: Path) -> tuple[int, int]:
    """Return the life and the try whose log this is, zeros where it is of none."""
    found = _RANK_LOG.fullmatch(path.name)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _is_wanted(name: str, *, rank: int | None) -> bool:
    by_hand = _RANK_LOG_BY_HAND.fullmatch(name)
    if by_hand is not None:
        return rank is None or int(by_hand[1]) == rank
    found = _RANK_LOG.fullmatch(name)
    if found is None:
        return rank is None and name.endswith(".log")
    return found[3] is not None and int(found[3]) == (rank or 0)


def _past(files: Sequence[Path]) -> set[Path]:
    """Return the logs of ranks that have been started again twice since: nobody writes there any more."""
    starts: dict[Path, list[Path]] = {}
    for path in files:
        if _RANK_LOG.fullmatch(path.name):
            starts.setdefault(path.parent, []).append(path)
    return {path for logs in starts.values() for path in logs[:-2]}


def _last_lines(
    files: Sequence[Path], positions: dict[Path, int], *, count: int, over: Collection[Path]
) -> list[str]:
    """Return the last lines of files that may be large; sets where those begin that are not yet complete."""
    found: list[str] = []
    for path in reversed(files):
        left = count - len(found)
        if left or path not in over:
            found = [*_last_of(path, positions, count=left), *found]
    return found


def _last_of(path: Path, positions: dict[Path, int], *, count: int) -> list[str]:
    begin, reach = 0, _TAIL_BYTES
    while True:
        with suppress(FileNotFoundError), path.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - reach)
            file.seek(begin)
            positions[path] = begin + len(file.readline()) if begin else 0
        lines = deque(_new_lines(path, positions), maxlen=count)
        if len(lines) == count or not begin:
            return list(lines)
        reach *= 8


def _new_lines(path: Path, positions: dict[Path, int]) -> Iterator[str]:
    """Yield the complete lines behind the known position."""
    folder = path.parent.parent
    source = f"{folder.name}/{path.stem}" if is_task(folder) else path.stem
    try:
        with path.open("rb") as file:
            while True:
                start = positions.get(path, 0)
                file.seek(start)
                whole, end, _ = file.read(_CHUNK_BYTES).rpartition(b"\n")
                if not end:
                    return
                positions[path] = start + len(whole) + 1
                for line in whole.decode(errors="replace").split("\n"):
                    said = line.rstrip() if path.suffix == ".log" else _reported(line)
                    if said is not None:
                        yield f"{source}: {said}"
    except FileNotFoundError:
        return


def _reported(line: str) -> str | None:
    """Return what a person reads of a JSON line of metrics or events; None where it is for charts alone."""
    record = next(parse_lines([line]), {})
    told = {name: value for name, value in record.items() if name in _TOLD or name.startswith("evaluate/")}
    if "kind" in record:
        return " ".join(f"{name} {value}" for name, value in record.items() if name != "time")
    if not told:
        return None
    seen = record.get("samples_seen")
    count = f"{seen:,}" if is_number(seen) else "?"
    return ", ".join([f"{count} images", *(f"{k} {_short(v)}" for k, v in told.items())])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class EndByHand:
    """Whether a run that was started by hand has ended: asked again and again, as its log is followed.

    Its lease tells whether it runs. One that nobody holds may be about to begin: a start loads its libraries
    for seconds, and what `stopped` says until then is an earlier start's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._deadline = directory, time.monotonic() + _START_SECONDS
        self._epoch = newest_epoch(directory)
        self._has_run = self.runs()

    def runs(self) -> bool:
        """Return whether somebody holds the run."""
        return is_held(self._directory)

    def __call__(self) -> bool:
        """Return whether nothing more will come of it, or nobody began it in time."""
        if RunDirectory(self._directory).marker("done") is not None:
            return True
        if self.runs():
            self._has_run = True
            return False
        began = self._has_run or newest_epoch(self._directory) > self._epoch
        return began or time.monotonic() > self._deadline
