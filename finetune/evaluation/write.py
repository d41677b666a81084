"""An evaluation as files: figures, the tables behind them, and accuracy against resolution and cost."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatnet.runtime.drawing import make_figure

_DOTS_PER_INCH = 150
_MOST_CELLS = 60  # a larger confusion matrix is a table and no picture
_MOST_NUMBERED = 20


def write_reports(reports: Sequence[dict[str, Any]], destination: Path) -> None:
    """Write evaluation.json, and for each resolution the classes and the confusion; with several, a plot.

    Several labels per image have no confusion.
    """
    destination.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in one.items() if key != "confusion"} for one in reports]
    (destination / "evaluation.json").write_text(json.dumps(plain, indent=2) + "\n")
    for report in reports:
        px, names = report["image_size"], [row["class"] for row in report["per_class"]]
        _write_rows(destination / f"classes-{px}.csv", report["per_class"])
        if "confusion" not in report:
            continue
        rows = [
            {"class": name, **dict(zip(names, counts, strict=True))}
            for name, counts in zip(names, report["confusion"], strict=True)
        ]
        _write_rows(destination / f"confusion-{px}.csv", rows)
        if len(names) <= _MOST_CELLS:
            _plot_confusion(report["confusion"], names, destination / f"confusion-{px}.png")
    if len(reports) > 1:
        _plot_resolutions(reports, destination / "resolutions.png")


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plot_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    side = 3 + 0.28 * len(names)
    figure = make_figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(names) <= _MOST_NUMBERED:
        dark = max(map(max, matrix)) / 2
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                colour = "white" if count > dark else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _plot_resolutions(reports: Sequence[dict[str, Any]], path: Path) -> None:
    figure = make_figure(figsize=(9, 3.6), layout="constrained")
    by_size, by_cost = figure.subplots(1, 2, sharey=True)
    ordered = sorted(reports, key=lambda report: report["image_size"])
    name, words = ("map", "mAP") if ordered[0]["label_kind"] == "multi" else ("top1", "top-1")
    shares = [100 * report[name] for report in ordered]
    low, high = (
        [
            abs(share - 100 * report[f"{name}_interval"][side])
            for share, report in zip(shares, ordered, strict=True)
        ]
        for side in (0, 1)
    )
    for axes, key, label in (
        (by_size, "image_size", "resolution (px)"),
        (by_cost, "gmacs", "cost (GMAC per image)"),
    ):
        axes.errorbar([report[key] for report in ordered], shares, yerr=[low, high], marker="o", capsize=3)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    by_size.set_xticks([report["image_size"] for report in ordered])
    for report, height in zip(ordered, shares, strict=True):
        by_cost.annotate(
            f"{report['image_size']} px", (report["gmacs"], height), (5, 5), textcoords="offset points"
        )
    by_cost.set_xlim(left=0)
    first = ordered[0]
    figure.suptitle(f"{first['model']} on {first['data']}, {first['samples']:,} images", parse_math=False)
    by_size.set_ylabel(f"{words} (%), 95 % interval")
    figure.savefig(path, dpi=_DOTS_PER_INCH)
