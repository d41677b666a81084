"""An evaluation in the terminal. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WORST_SHOWN = 5


def print_reports(reports: Sequence[dict[str, Any]]) -> None:
    """Print the figures of every resolution, and what the last one confused."""
    console = Console()
    first = reports[0]
    console.print(f"{escape(first['model'])} on {escape(first['data'])}: {first['samples']:,} images")
    # Narrow, so that nine columns fit into 80 characters.
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("px", "top-1", "95 %", "top-5", "balanced", "loss", "ECE", "images/s", "GMAC"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in reports:
        low, high = one["top1_interval"]
        table.add_row(
            str(one["image_size"]),
            f"[bold]{one['top1']:.2%}[/bold]",
            f"{low:.1%}–{high:.1%}",
            f"{one['top5']:.2%}",
            f"{one['balanced_top1']:.2%}",
            "–" if one["loss"] is None else f"{one['loss']:.3f}",
            f"{one['ece']:.3f}",
            f"{one['images_per_second']:,.0f}",
            f"{one['gmacs']:.2f}",
        )
    console.print(table)
    last = reports[-1]
    if "real_top1" in last:
        console.print(f"ReaL top-1: {last['real_top1']:.2%}")
    if last["judged_among"] is not None:
        console.print(f"judged among the {last['judged_among']} classes of the data")
    rated = [row for row in last["per_class"] if row["samples"]]
    worst = sorted(rated, key=lambda row: row["top1"])[:_WORST_SHOWN]
    console.print("weakest: " + ", ".join(f"{escape(row['class'])} {row['top1']:.0%}" for row in worst))
    if last["most_confused"]:
        first = last["most_confused"][0]
        pair = f"{escape(first['class'])} → {escape(first['taken_for'])}"
        console.print(f"most confused: {pair}, {first['count']} times")
    for label, key in (("not readable", "bad_samples"), ("without finite logits", "non_finite")):
        if last[key]:
            console.print(f"[red]{last[key]} images {label}[/red]")
