"""An evaluation in the terminal. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from coatnet.config.plain_text import giga, number_of, plain
from coatnet.runtime.console import make_console

_WORST_SHOWN = 5
_COLUMNS = 76
_SHARES = {
    "single": {"top1": "top-1", "top1_interval": "95 %", "top5": "top-5", "balanced_top1": "balanced"},
    "multi": {"map": "mAP", "map_interval": "95 %", "map_micro": "micro", "precision1": "precision@1"},
}
_OTHERS = ("loss", "ECE", "images/s", "GMAC")


def print_reports(reports: Sequence[dict[str, Any]]) -> None:
    """Print the figures of every resolution, and what the last one confused."""
    console = make_console()
    first = reports[0]
    console.print(f"{escape(first['model'])} on {escape(first['data'])}: {first['samples']:,} images")
    shares = _SHARES[first["label_kind"]]
    # Nine columns fit into 80 characters; a narrower terminal gets nine rows.
    rows = [("px", *shares.values(), *_OTHERS), *(_figures(one, shares) for one in reports)]
    heading, *below = rows if console.width >= _COLUMNS else zip(*rows, strict=True)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for word in heading:
        table.add_column(word, justify="right", no_wrap=True)
    for row in below:
        table.add_row(*row)
    console.print(table)
    last = reports[-1]
    if any("map" in one and one["map"] > one["map_interval"][1] for one in reports):
        console.print("mAP above its interval: chance makes it too high where classes have few images")
    if "real_top1" in last:
        console.print(f"ReaL top-1: {last['real_top1']:.2%}")
    if last["judged_among"] is not None:
        console.print(f"judged among the {last['judged_among']} classes of the data")
    rated = [row for row in last["per_class"] if row["samples"]]
    share = "ap" if last["label_kind"] == "multi" else "top1"
    worst = sorted(rated, key=lambda row: row[share])[:_WORST_SHOWN]
    console.print("weakest: " + ", ".join(f"{escape(row['class'])} {row[share]:.0%}" for row in worst))
    if last.get("most_confused"):
        first = last["most_confused"][0]
        pair = f"{escape(first['class'])} → {escape(first['taken_for'])}"
        times = "once" if first["count"] == 1 else f"{first['count']:,} times"
        console.print(f"most confused: {pair}, {times}")
    if last["bad_samples"]:
        first, images = last["bad"][0], number_of(last["bad_samples"], "image")
        named = escape(plain(f"{first['name']}: {first['reason']}"))
        console.print(f"[red]{images} not readable[/red], such as {named}")
    if last["non_finite"]:
        console.print(f"[red]{number_of(last['non_finite'], 'image')} without finite logits[/red]")


def _figures(report: dict[str, Any], shares: Iterable[str]) -> tuple[str, ...]:
    first, *others = (_share(report[name]) for name in shares)
    return (
        str(report["image_size"]),
        f"[bold]{first}[/bold]",
        *others,
        f"{report['loss']:.3f}",
        f"{report['ece']:.3f}",
        f"{report['images_per_second']:,.0f}",
        giga(report["gmacs"] * 1e9),
    )


def _share(value: float | Sequence[float]) -> str:
    """Return a share in per cent, or the interval of one."""
    return f"{value:.2%}" if isinstance(value, float) else "–".join(f"{end:.1%}" for end in value)
