"""The report: figures first, then curves, time, what happened, and how it was made. HTML and Markdown."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from coatnet.report.chart import line_chart, number_text, stacked_bar
from coatnet.report.record import RunRecord, read_run
from coatnet.report.style import STYLE
from coatnet.runtime.progress import clock
from coatnet.runtime.run_directory import write_atomically

_FIRST = ("loss", "top1", "images_per_second", "gradient_norm", "learning_rate", "data_wait")
_TROUBLE = (
    "bad_sample",
    "skipped_step",
    "alarm",
    "retry",
    "rollback",
    "held",
    "straggler",
    "loss_continuity",
)
_MAX_EVENTS = 200


def write_report(path: Path) -> Path:
    """Write report.html and report.md into a run directory and return the page's path."""
    record = read_run(Path(path))
    page = Path(path) / "report.html"
    write_atomically(page, _html(record))
    write_atomically(page.with_suffix(".md"), _markdown(record))
    return page


def figures(record: RunRecord) -> dict[str, Any]:
    """Return the report's numbers as plain containers."""
    return {
        "run": record.name,
        "state": record.state,
        "samples_seen": record.samples_seen,
        "seconds": round(record.seconds, 3),
        "lives": len(record.lives),
        "account_seconds": {name: round(value, 3) for name, value in record.account.items() if value},
        "last": {name: points[-1][1] for name, points in record.series.items() if points},
        "events": dict(record.counts),
        "summary": record.summary,
        "predicted_against_measured": comparison(record),
    }


def comparison(record: RunRecord) -> dict[str, dict[str, float]]:
    """Set the plan's numbers beside the run's, where plan.json and the metrics know the same name."""
    found = {}
    for name, predicted in record.plan.items():
        points = record.series.get(name)
        if points and isinstance(predicted, int | float) and predicted:
            values = sorted(value for _, value in points)
            measured = values[len(values) // 2]
            found[name] = {"predicted": predicted, "measured": measured, "error": measured / predicted - 1}
    return found


def _html(record: RunRecord) -> str:
    sections = [
        _head(record),
        _section("Curves", _curves(record)),
        _section("Where the time went", _time(record)),
        _section("Predicted against measured", _table(_comparison_rows(record))),
        _section("What happened", _happened(record)),
        _section("Environment", _table([(key, _text(value)) for key, value in record.environment.items()])),
        _section("Config", f"<pre>{escape(record.config)}</pre>"),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(record.name)}</title><style>{STYLE}</style><main>{''.join(sections)}</main></html>\n"
    )


def _head(record: RunRecord) -> str:
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in _headline(record)
    )
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    state = f'<span class="state {record.state.split()[0]}">{escape(record.state)}</span>'
    title = f"<h1>{escape(record.name)} {state}</h1>"
    return f'<header>{title}<p>report of {now}</p></header><div class="tiles">{tiles}</div>'


def _headline(record: RunRecord) -> list[tuple[str, str]]:
    rows = [
        ("images seen", number_text(record.samples_seen)),
        ("wall time", clock(record.seconds)),
        ("lives", str(max(1, len(record.lives)))),
    ]
    useful = record.account.get("compute", 0.0) + record.account.get("communication", 0.0)
    if record.seconds:
        rows.append(("training time", f"{useful / record.seconds:.1%}"))
    for name, label in (("top1", "top-1"), ("loss", "loss"), ("images_per_second", "images/s")):
        key = next((one for one in record.series if one.split("/")[-1] == name), None)
        if key is not None:
            value = record.series[key][-1][1]
            rows.append((label, f"{value:.2%}" if name == "top1" else number_text(value)))
    rows.append(("bad samples", str(record.counts.get("bad_sample", 0))))
    return rows


def _curves(record: RunRecord) -> str:
    def rank(name: str) -> tuple[int, str]:
        leaf = name.split("/")[-1]
        return (next((i for i, word in enumerate(_FIRST) if leaf.startswith(word)), len(_FIRST)), name)

    figures_html = []
    for name in sorted(record.series, key=rank):
        chart = line_chart({name: record.series[name]})
        if chart:
            last = record.series[name][-1][1]
            caption = f"<figcaption>{escape(name)} <b>{number_text(last)}</b></figcaption>"
            figures_html.append(f"<figure>{caption}{chart}</figure>")
    shown, rest = figures_html[:6], figures_html[6:]
    more = f"<details><summary>{len(rest)} more</summary><div class='grid2'>{''.join(rest)}</div></details>"
    return f'<div class="grid2">{"".join(shown)}</div>{more if rest else ""}' if shown else ""


def _time(record: RunRecord) -> str:
    spent = {name: value for name, value in record.account.items() if value > 0}
    if not spent:
        return ""
    rows = [(name, f"{value:,.1f} s", f"{value / record.seconds:.1%}") for name, value in spent.items()]
    rows.append(("all", f"{record.seconds:,.1f} s", "100.0%"))
    return stacked_bar(spent) + _table(rows, head=("class", "seconds per rank", "share"))


def _comparison_rows(record: RunRecord) -> list[tuple[str, ...]]:
    return [
        (name, number_text(one["predicted"]), number_text(one["measured"]), f"{one['error']:+.1%}")
        for name, one in comparison(record).items()
    ]


def _happened(record: RunRecord) -> str:
    trouble = [(kind, str(record.counts[kind])) for kind in _TROUBLE if record.counts.get(kind)]
    counted = (
        _table(trouble, head=("what", "times")) if trouble else "<p>No bad sample, skipped step or alarm.</p>"
    )
    rows = []
    for event in record.events[-_MAX_EVENTS:]:
        rest = {key: value for key, value in event.items() if key not in ("time", "kind")}
        rows.append((_moment(event.get("time")), str(event.get("kind")), _text(rest)))
    listed = _table(rows, head=("when", "what", "details"))
    unfolded = "open" if len(rows) <= 12 else ""
    return f"{counted}<details {unfolded}><summary>{len(rows)} events</summary>{listed}</details>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _table(rows: Sequence[tuple[str, ...]], *, head: tuple[str, ...] = ()) -> str:
    if not rows:
        return ""
    titles = f"<tr>{''.join(f'<th>{escape(one)}</th>' for one in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{titles}{body}</table></div>'


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _moment(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _markdown(record: RunRecord) -> str:
    lines = [f"# {record.name}", "", f"State: {record.state}.", "", "| | |", "|---|---|"]
    lines += [f"| {label} | {value} |" for label, value in _headline(record)]
    if record.seconds:
        lines += ["", "## Where the time went", "", "| class | seconds per rank | share |", "|---|---:|---:|"]
        lines += [
            f"| {name} | {value:,.1f} | {value / record.seconds:.1%} |"
            for name, value in record.account.items()
            if value > 0
        ]
    rows = _comparison_rows(record)
    if rows:
        lines += [
            "",
            "## Predicted against measured",
            "",
            "| | predicted | measured | error |",
            "|---|---:|---:|---:|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "## What happened", ""]
    lines += [f"- {kind}: {count}" for kind, count in sorted(record.counts.items())] or ["- nothing"]
    lines += ["", "## Environment", ""]
    lines += [f"- {key}: {_text(value)}" for key, value in record.environment.items()]
    lines += ["", "## Config", "", "```yaml", record.config.rstrip(), "```", ""]
    return "\n".join(lines)
