"""The logs of a run, across lives and ranks, as one stream. Asks no queue."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_SECONDS = 0.3
_CHUNK_BYTES = 1 << 20
_RANK_LOG = re.compile(r"life-(\d+)\.try-(\d+)\.(?:rank-(\d+)|preflight-\d+)\.log")


def read_logs(
    directory: Path, *, rank: int | None, tail: int, follow: bool, finished: Callable[[], bool]
) -> Iterator[str]:
    """Yield lines, each headed by its source.

    Args:
        rank: only this rank and no job log; None for rank 0 and the job's log.
        tail: so many last lines of what is there; 0 for all.
        follow: go on with what is added, until `finished` says so.
    """
    positions: dict[Path, int] = {}
    lines = [line for path in _files(directory, rank=rank) for line in _new_lines(path, positions)]
    yield from lines[-tail:] if tail else lines
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
    wanted = [path for path in logs if _is_wanted(path, rank=rank)]
    return sorted(
        wanted, key=lambda path: (path.stat().st_ctime_ns if path.name.startswith("job-") else 0, path.name)
    )


def _is_wanted(path: Path, *, rank: int | None) -> bool:
    found = _RANK_LOG.fullmatch(path.name)
    if found is None:
        return rank is None
    return found[3] is not None and int(found[3]) == (rank or 0)


def _new_lines(path: Path, positions: dict[Path, int]) -> Iterator[str]:
    """Yield the complete lines behind the known position."""
    start = positions.get(path, 0)
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(_CHUNK_BYTES)
    except FileNotFoundError:
        return
    whole = data.rpartition(b"\n")[0]
    if not whole:
        return
    positions[path] = start + len(whole) + 1
    for line in whole.decode(errors="replace").split("\n"):
        yield f"{path.stem}: {line.rstrip()}"
