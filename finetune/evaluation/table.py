"""An evaluation in the terminal. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from coatnet.runtime.console import make_console

_WORST_SHOWN = 5
_COLUMNS = 76
_HEADINGS = ("px", "top-1", "95 %", "top-5", "balanced", "loss", "ECE", "images/s", "GMAC")


def print_reports(reports: Sequence[dict[str, Any]]) -> None:
    """Print the figures of every resolution, and what the last one confused."""
    console = make_console()
    first = reports[0]
    console.print(f"{escape(first['model'])} on {escape(first['data'])}: {first['samples']:,} images")
    # Nine columns fit into 80 characters; a narrower terminal gets nine rows.
    rows = [_HEADINGS, *(_figures(one) for one in reports)]
    heading, *below = rows if console.width >= _COLUMNS else zip(*rows, strict=True)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for word in heading:
        table.add_column(word, justify="right", no_wrap=True)
    for row in below:
        table.add_row(*row)
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
        times = "once" if first["count"] == 1 else f"{first['count']:,} times"
        console.print(f"most confused: {pair}, {times}")
    for label, key in (("not readable", "bad_samples"), ("without finite logits", "non_finite")):
        if last[key]:
            console.print(f"[red]{last[key]} images {label}[/red]")


def _figures(report: dict[str, Any]) -> tuple[str, ...]:
    low, high = report["top1_interval"]
    return (
        str(report["image_size"]),
        f"[bold]{report['top1']:.2%}[/bold]",
        f"{low:.1%}–{high:.1%}",
        f"{report['top5']:.2%}",
        f"{report['balanced_top1']:.2%}",
        "–" if report["loss"] is None else f"{report['loss']:.3f}",
        f"{report['ece']:.3f}",
        f"{report['images_per_second']:,.0f}",
        f"{report['gmacs']:.2f}",
    )
