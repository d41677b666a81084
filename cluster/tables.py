"""The tables that people read: runs, and plans. Prints; knows no SLURM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.status import RunStatus

_COLOURS = {"done": "green", "running": "cyan", "pending": "yellow", "requeued": "yellow", "held": "red"}


def print_status(runs: Sequence[RunStatus], *, queue_is_known: bool) -> None:
    """Print one line per run."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for heading in ("run", "state", "job", "life", "step", "progress", "images/s", "left", "lost", "last"):
        table.add_column(heading, overflow="fold")
    for run in runs:
        colour = _COLOURS.get(run.state, "white")
        table.add_row(
            escape(run.directory),
            f"[{colour}]{run.state}[/{colour}]",
            run.job_id or "–",
            str(run.lives),
            "–" if run.step is None else str(run.step),
            _progress(run),
            "–" if run.images_per_second is None else f"{run.images_per_second:,.0f}",
            duration(run.remaining_seconds),
            duration(run.lost_seconds),
            escape(run.detail or run.last_error),
        )
    console = Console()
    console.print(table if runs else "no runs found")
    if not queue_is_known:
        console.print("no SLURM here: states are read from the run directories alone", style="dim")


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


def _progress(run: RunStatus) -> str:
    if run.samples_seen is None:
        return "–"
    if not run.total_samples:
        return f"{run.samples_seen:,} images"
    return f"{100 * run.samples_seen / run.total_samples:.1f} %"
