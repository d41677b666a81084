"""A progress bar with rate and remaining time; plain lines where no terminal listens."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LINE_EVERY_SECONDS, _RATE_EVERY_SECONDS = 10.0, 5.0
_MEMORY_SECONDS = 3600.0
_LEAST_BAR = 4  # characters


class Progress:
    """What `progress` hands out: say how far it went, and optionally what should stand beside the bar.

    This one shows nothing.
    """

    _note = ""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""

    def note(self, text: str) -> None:
        """Show a few words beside the rate."""
        self._note = text


class _Pace:
    """How fast it went in the last interval, and by a mean that forgets how long the rest will take.

    The mean looks back over the present age, an hour at most: a slow start counts ever less, and an
    evaluation that returns is counted in.
    """

    def __init__(self, done: int, *, every_seconds: float) -> None:
        self._every_seconds, self._done = every_seconds, done
        self._began = self._looked_at = time.monotonic()
        self._amount = self._seconds = self._rate = 0.0

    def rate(self, done: int) -> float:
        """Return the units per second of the last interval that is over; of the first one so far."""
        now = time.monotonic()
        seconds = max(now - self._looked_at, 1e-9)
        if seconds >= self._every_seconds or not self._seconds:
            amount = done - self._done
            self._rate = amount / seconds
            kept = math.exp(-seconds / min(max(now - self._began, seconds), _MEMORY_SECONDS))
            self._amount, self._seconds = kept * self._amount + amount, kept * self._seconds + seconds
            self._done, self._looked_at = done, now
        return max(self._rate, 0.0)

    def left(self, units: int) -> str:
        """Return the time that so many more will take."""
        return clock(units * self._seconds / self._amount if self._amount > 0 else math.inf)


class _Lines(Progress):
    def __init__(self, total: int | None, label: str, unit: str, done: int) -> None:
        self._total, self._label, self._unit = total, label, unit
        self._done, self._shown = done, time.monotonic()
        self._pace = _Pace(done, every_seconds=_LINE_EVERY_SECONDS)

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        if time.monotonic() - self._shown >= _LINE_EVERY_SECONDS:
            self.show()

    def show(self) -> None:
        self._shown = time.monotonic()
        rate = self._pace.rate(self._done)
        text = f"{self._label}: {self._done:,}"
        if self._total is not None:
            text += f"/{self._total:,}, {self._pace.left(self._total - self._done)} left"
        print(f"{text}, {rate:,.0f} {self._unit}/s {self._note}".rstrip(), file=sys.stderr, flush=True)


class _Bar(Progress):
    def __init__(self, total: int | None, label: str, unit: str, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self._unit, self._pace = unit, _Pace(done, every_seconds=_RATE_EVERY_SECONDS)
        self._task = self._bar.add_task(label, total=total, completed=done, rate="", note="")

    def advance(self, amount: int = 1) -> None:
        self._bar.advance(self._task, amount)
        task = self._bar.tasks[0]
        rate = self._pace.rate(int(task.completed))
        left = f"{self._pace.left(int(task.total - task.completed))} left" if task.total else ""
        shown = f"{rate:,.0f} {self._unit}/s {left}"
        self._bar.update(self._task, rate=shown, note=self._fitting(shown))

    def _fitting(self, rate: str) -> str:
        """Return what a narrow terminal has room for beside the rest, which would be cut as well."""
        task = self._bar.tasks[0]
        rest = len(f"{task.description} {task.total or task.completed}/{task.total or '?'} {rate} ")
        return self._note[: max(0, self._bar.console.width - rest - _LEAST_BAR)]


@contextmanager
def progress(
    total: int | None, label: str, unit: str, *, done: int = 0, enabled: bool = True
) -> Iterator[Progress]:
    """Show progress on stderr: a bar on a terminal, a line every ten seconds elsewhere, and with NO_COLOR."""
    if not enabled:
        yield Progress()
    elif sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        bar = _Bar(total, label, unit, done)
        with bar._bar:
            yield bar
    else:
        lines = _Lines(total, label, unit, done)
        yield lines
        lines.show()


def clock(seconds: float) -> str:
    """Write a length of time as 2:03, 1:02:03 or 12 d 1:02:03, or – when it is unknown."""
    if seconds == float("inf"):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
