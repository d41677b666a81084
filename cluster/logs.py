"""The logs of a run, across lives and ranks, as one stream. Asks no queue.

The first rank of a run that was started by hand writes to its terminal; what it reported stands in for that.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.array import is_task
from cluster.history import was_submitted
from coatnet.config.plain_text import is_number
from coatnet.runtime.lease import is_held, newest_epoch
from coatnet.runtime.run_directory import RunDirectory, parse_lines

_POLL_SECONDS = 0.3
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
    there = (line for path in _files(directory, rank=rank) for line in _new_lines(path, positions))
    yield from deque(there, maxlen=tail) if tail else there
    while follow:
        ended = finished()  # asked before reading, so that the last lines are read after the end
        for path in _files(directory, rank=rank):
            yield from _new_lines(path, positions)
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _files(directory: Path, *, rank: int | None) -> list[Path]:
    """Return the logs in the order of their lives, then the jobs' own, which tell how they ended."""
    logs = [*directory.glob("logs/*.log"), *directory.glob("task-*/logs/*.log")]
    if rank is None and not was_submitted(directory):
        run = RunDirectory(directory)
        logs += [path for path in (run.metrics, run.events) if path.exists()]
    wanted = [path for path in logs if _is_wanted(path, rank=rank)]
    return sorted(wanted, key=_place)


def _place(path: Path) -> tuple[int, str, str]:
    return path.stat().st_ctime_ns if path.name.startswith("job-") else 0, path.name, str(path)


def _is_wanted(path: Path, *, rank: int | None) -> bool:
    by_hand = _RANK_LOG_BY_HAND.fullmatch(path.name)
    if by_hand is not None:
        return rank is None or int(by_hand[1]) == rank
    found = _RANK_LOG.fullmatch(path.name)
    if found is None:
        return rank is None
    return found[3] is not None and int(found[3]) == (rank or 0)


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
