"""The account of time: every second of a rank belongs to one class, kept over restarts. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coatnet.runtime.run_directory import append_line, read_lines

CLASSES = (
    "start",
    "compile",
    "data_wait",
    "compute",
    "communication",
    "checkpoint",
    "evaluation",
    "redone",
    "idle",
)


class TimeAccount:
    """A stack of classes on a monotonic clock: entering one stops the clock of the one around it.

    Time outside of every `measure` belongs to `start` before the first step and to `idle` afterwards.
    """

    def __init__(self, path: Path, *, rank: int, life: str) -> None:
        self._path, self._rank, self._life = path, rank, life
        self._seconds = dict.fromkeys(CLASSES, 0.0)
        self._stack = ["start"]
        self._since = time.monotonic()
        self._first_flush_at = time.time()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time inside to class `name`."""
        assert name in CLASSES, name
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def started(self) -> None:
        """Say that the start is over: what is not measured from now on is idle."""
        self._settle()
        self._stack[0] = "idle"

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each class so far in this life."""
        self._settle()
        return dict(self._seconds)

    def flush(self, *, samples_seen: int) -> None:
        """Append the totals of this life: a killed run loses at most one interval."""
        totals = {name: round(value, 4) for name, value in self.seconds().items()}
        append_line(
            self._path,
            {
                "time": time.time(),
                "life": self._life,
                "rank": self._rank,
                "samples_seen": samples_seen,
                "seconds": totals,
            },
        )

    def _settle(self) -> None:
        now = time.monotonic()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


def summarise(path: Path) -> dict[str, float]:
    """Add up the last totals of every life and rank, in seconds, averaged over the ranks of each life."""
    last: dict[tuple[str, int], dict[str, float]] = {}
    for row in read_lines(path):
        last[(row["life"], row["rank"])] = row["seconds"]
    sums = dict.fromkeys(CLASSES, 0.0)
    for life in {key[0] for key in last}:
        ranks = [seconds for key, seconds in last.items() if key[0] == life]
        for name in CLASSES:
            sums[name] += sum(one[name] for one in ranks) / len(ranks)
    return sums
