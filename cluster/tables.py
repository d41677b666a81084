"""The tables that people read: runs, and plans. Prints; knows no SLURM."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from cluster.status import RunStatus
from coatnet.config.plain_text import number_of, plain
from coatnet.runtime.console import make_console

_COLOURS = {"done": "green", "running": "cyan", "pending": "yellow", "requeued": "yellow", "held": "red",
            "failed": "red", "lost": "red"}  # fmt: skip
_BAR = 12  # characters, where the terminal has room for them
_ROOM = 100
_LEAST = 80  # a narrower terminal breaks the lines itself: rich would leave out the runs' names


def print_status(runs: Sequence[RunStatus], *, silence: str = "") -> None:
    """Print one line per run, and below the table what each has to say.

    Args:
        silence: why SLURM said nothing of them.
    """
    console = make_console()
    console.width = max(console.width, _LEAST)
    console.print(
        _table(runs, bar=_BAR if console.width >= _ROOM else 0)
        if runs
        else "no runs found; give their directories, or folders of them"
    )
    for run in runs:
        words = "; ".join(filter(None, (run.detail or run.last_error, _begins(run), run.next_action)))
        if words and run.state != "done":
            console.print(
                f"\n {_text(run.directory)}, {_coloured(run.state)}: {_text(words)}",
                highlight=False,
                soft_wrap=True,
            )
    if silence:
        words = f"states are read from the run directories alone: {silence}"
        console.print(f"\n{_text(words)}", style="dim", highlight=False, soft_wrap=True)


def _table(runs: Sequence[RunStatus], *, bar: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for heading in ("state", "job"):
        table.add_column(heading, no_wrap=True)
    for heading in ("life", "step", "progress", "images/s", "left", "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            _text(run.directory),
            _coloured(run.state),
            run.job_id or "–",
            str(run.lives or "–"),
            "–" if run.step is None else f"{run.step:,}",
            _progress(run, bar=bar),
            "–" if run.images_per_second is None else f"{run.images_per_second:,.0f}",
            duration(run.remaining_seconds),
            duration(run.lost_seconds),
        )
    return table


def _begins(run: RunStatus) -> str:
    """Return when a run that waits is to begin, in a person's words."""
    return f"expected to begin {run.expected_start[:16].replace('T', ' ')}" if run.expected_start else ""


def _text(words: str) -> str:
    """Return what others named or wrote, so that it marks up and breaks no line."""
    return escape(plain(words))


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state, "white")
    return f"[{colour}]{state}[/{colour}]"


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them: 3 d 04 h, 2 h 05 min, 40 s."""
    if seconds is None:
        return "–"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {int(seconds % 60):02d} s" if minutes else f"{seconds:.0f} s"


def _progress(run: RunStatus, *, bar: int) -> str:
    if run.samples_seen is None:
        return "–"
    if not run.total_samples:
        return number_of(run.samples_seen, "image")
    share = run.samples_seen / run.total_samples
    full = round(bar * min(share, 1.0))
    drawn = f"[green]{'━' * full}[/green][bright_black]{'━' * (bar - full)}[/bright_black] " if bar else ""
    return f"{drawn}{share:.1%}"
