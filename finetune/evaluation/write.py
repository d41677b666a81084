"""An evaluation as files: figures, the tables behind them, and accuracy against resolution and cost."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coatnet.config.plain_text import json_text
from coatnet.runtime.drawing import make_figure, name_cells
from coatnet.runtime.run_directory import write_atomically
from coatnet.runtime.whole_files import whole_file
from finetune.evaluation.figures import confusion_table

_DOTS_PER_INCH = 150
_MOST_CELLS = 60  # a larger confusion matrix is a table and no picture
_MOST_COLUMNS = 1000  # of a table; for 21,841 classes it would take a gigabyte
_MOST_NUMBERED = 20
_ROOM = 1.15  # of a text's own width
_MOST_LETTERS = 36  # of a path in a title


def write_reports(reports: Sequence[dict[str, Any]], destination: Path) -> None:
    """Write evaluation.json, and for each resolution the classes and the confusion; with several, a plot.

    Several labels per image have no confusion.

    Raises:
        OSError: a file could not be written, and nothing of it is left.
    """
    destination.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in one.items() if key != "confusion"} for one in reports]
    write_atomically(destination / "evaluation.json", json_text(plain, indent=2) + "\n")
    for report in reports:
        px, names = report["image_size"], [row["class"] for row in report["per_class"]]
        columns = list(report["per_class"][0])
        rows = ([row[column] for column in columns] for row in report["per_class"])
        _write_rows(destination / f"classes-{px}.csv", columns, rows)
        if "confusion" not in report:
            continue
        pairs = np.array(report["confusion"], dtype=np.int64).reshape(-1, 3)
        _write_confusion(pairs, names, destination / f"confusion-{px}")
    if len(reports) > 1:
        _plot_resolutions(reports, destination / "resolutions.png")


def _write_rows(path: Path, heading: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading, *rows])


def _write_confusion(pairs: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Write a table of the classes, of few a picture too; of too many the pairs that occur."""
    if len(names) > _MOST_COLUMNS:
        rows = ((names[row], names[column], count) for row, column, count in pairs.tolist())
        _write_rows(path.with_suffix(".csv"), ["class", "taken_for", "count"], rows)
        return
    matrix = confusion_table(pairs, classes=len(names)).tolist()
    named = ([name, *counts] for name, counts in zip(names, matrix, strict=True))
    _write_rows(path.with_suffix(".csv"), ["class", *names], named)
    if len(names) <= _MOST_CELLS:
        _plot_confusion(matrix, names, path.with_suffix(".png"))


def _plot_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    side = 3 + 0.28 * len(names)
    figure = make_figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues")
    name_cells(axes, names)
    if len(names) <= _MOST_NUMBERED:
        dark = max(map(max, matrix)) / 2
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                colour = "white" if count > dark else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH)


def _plot_resolutions(reports: Sequence[dict[str, Any]], path: Path) -> None:
    figure = make_figure(figsize=(9, 3.6), layout="constrained")
    by_size, by_cost = figure.subplots(1, 2, sharey=True)
    ordered = sorted(reports, key=lambda report: report["image_size"])
    name, words = ("map", "mAP") if ordered[0]["label_kind"] == "multi" else ("top1", "top-1")
    shares = 100 * np.array([report[name] for report in ordered])
    low, high = 100 * np.array([report[f"{name}_interval"] for report in ordered]).T
    for axes, key, label in (
        (by_size, "image_size", "resolution (px)"),
        (by_cost, "gmacs", "cost (GMAC per image)"),
    ):
        places = [report[key] for report in ordered]
        axes.plot(places, shares, marker="o", color="C0")
        # Around its own middle: mAP of few positives may lie above its whole interval.
        middle, reach = (low + high) / 2, (high - low) / 2
        axes.errorbar(places, middle, yerr=reach, fmt="none", ecolor="C0", capsize=3)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    sizes = [report["image_size"] for report in ordered]
    by_size.set_xticks(sizes, [f"{px}" for px in sizes])
    points = zip(sizes, [report["gmacs"] for report in ordered], shares, strict=True)
    # Below on the right: most curves come from below on the left.
    by_what: dict[str, Any] = {"xytext": (5, -11), "textcoords": "offset points", "fontsize": 8}
    labels = [by_cost.annotate(f"{px} px", (cost, height), **by_what) for px, cost, height in points]
    by_cost.set_xlim(left=0)
    first = ordered[0]
    what, where = (_end_of(first[key]) for key in ("model", "data"))
    figure.suptitle(f"{what} on {where}, {first['samples']:,} images", parse_math=False)
    by_size.set_ylabel(f"{words} (%), 95 % interval")
    figure.draw_without_rendering()  # lays everything out
    _thin_out(by_size.get_xticklabels())
    _thin_out(labels)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH)


def _thin_out(texts: Sequence[Any]) -> None:
    """Hide texts of a figure that would lie on a later one: where resolutions are small, many crowd."""
    shown: list[Any] = []
    for text in reversed(texts):
        box = text.get_window_extent().expanded(_ROOM, 1)
        if any(box.overlaps(other) for other in shown):
            text.set_visible(False)
        else:
            shown.append(box)


def _end_of(path: str) -> str:
    """Return of a long path the end, which tells more than its beginning."""
    return path if len(path) <= _MOST_LETTERS else f"…{path[1 - _MOST_LETTERS :]}"
