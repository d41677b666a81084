"""The report of a run: what stands in it, in which order. HTML and Markdown come of the same sections."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from coatnet.config import UserError
from coatnet.config.plain_text import is_number, number_of
from coatnet.report.blocks import Block, Chart, Code, Fold, Section, Table, Text, Tiles, html_page, markdown
from coatnet.report.card import model_card, model_line
from coatnet.report.chart import number_text, stacked_bar, timeline
from coatnet.report.curves import curves
from coatnet.report.record import RunRecord, read_run
from coatnet.runtime.lives import LifeAccount
from coatnet.runtime.progress import clock
from coatnet.runtime.run_directory import write_atomically

_TROUBLE = {
    "skipped_step": "steps refused for a loss or gradient that was not finite",
    "skipped_spike": "steps refused for a loss spike",
    "spike": "loss spikes",
    "rollback": "rollbacks",
    "replay_bundle": "replay bundles, for coatnet replay",
    "silent_corruption": "silent corruptions",
    "straggler": "slow ranks",
    "alarm": "alarms, such as a save that failed",
    "retry": "retries",
    "ended": "ends by an error",
    "held": "holds",
}
_NO_TROUBLE = "No refused step, spike, rollback or alarm."
_TOLD_BY_EVERY_RANK = ("skipped_step", "skipped_spike", "spike", "rollback")
_MOST_ROWS = 200
_MOST_BAD = 100
_GIB = 2**30
_UNITS = {  # of what a plan predicts: how it is headed, and in what it is counted
    "images_per_second": ("images/s", 1.0),
    "step_seconds": ("step, ms", 1e-3),
    "memory_bytes": ("memory, GiB", _GIB),
    "mfu": ("MFU", 1.0),
}
_MOST_BROKEN = 10
_MOST_PLAIN_SECONDS = 120.0
_LIFE_HEAD = (
    "life",
    "began (UTC)",
    "lasted",
    "from image",
    "to image",
    "ranks",
    "start",
    "redone",
    "then gap",
)


def write_report(path: Path, *, destination: Path | None = None) -> Path:
    """Write report.html and report.md into a run directory, or another folder, and return the page's path.

    Raises:
        UserError: no run directory, or one that cannot be written.
    """
    record = read_run(Path(path))
    page = (destination or Path(path)) / "report.html"
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = ", ".join(part for part in (model_line(record), f"report of {now}") if part) + "."
    sections = _sections(record)
    options: dict[str, Any] = {"state": record.state, "subtitle": subtitle, "sections": sections}
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, html_page(record.name, **options))
        write_atomically(page.with_suffix(".md"), markdown(record.name, **options))
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}; --destination FOLDER writes it elsewhere") from None
    return page


def figures(record: RunRecord) -> dict[str, Any]:
    """Return the report's numbers as plain containers."""
    return {
        "run": record.name,
        "state": record.state,
        "samples_seen": record.samples_seen,
        "seconds": round(record.seconds, 3),
        "between_lives_seconds": round(record.between_seconds, 3),
        "lives": record.life_count,
        "account_seconds": {name: round(value, 3) for name, value in record.account.items() if value},
        "last": {name: points[-1][1] for name, points in record.series.items()},
        "events": dict(record.counts),
        "summary": record.summary,
        "predicted_against_measured": comparison(record),
    }


def comparison(record: RunRecord) -> dict[str, dict[str, float]]:
    """Set the plan's numbers beside those of the life whose start made it, where both know the same name."""
    series = {name: _of_last_life(record, points) for name, points in record.series.items()}
    measured = {name: _median(points) for name, points in series.items() if points}
    if "memory_gib" in measured:
        measured["memory_bytes"] = max(value for _, value in series["memory_gib"]) * _GIB
    batch, rate = measured.get("train/global_batch"), measured.get("images_per_second")
    if batch and rate:
        measured["step_seconds"] = batch / rate
    # A plan's step is that of the first global batch; most of the run may have had another.
    plan = dict(record.plan)
    for one in plan.get("stretches") or ():
        if one["global_batch"] == batch:
            plan |= {"step_seconds": one["step_seconds"], "images_per_second": batch / one["step_seconds"]}
    return {
        name: {"predicted": predicted, "measured": measured[name], "error": measured[name] / predicted - 1}
        for name, predicted in plan.items()
        if name in measured and is_number(predicted) and predicted
    }


def _sections(record: RunRecord) -> list[Section]:
    return [
        Section("", [Tiles(_headline(record)), Text(_story(record))]),
        Section("Where the time went", _time(record)),
        Section("Curves", curves(record)),
        Section("Bad samples", _bad_samples(record)),
        Section("What happened", _happened(record)),
        Section("Predicted against measured", _compared(record)),
        Section("Model card", model_card(record)),
        Section("Environment", _environment(record)),
        Section("Config", [Code(record.config_text, "yaml")]),
    ]


def _headline(record: RunRecord) -> list[tuple[str, str]]:
    rows = [("images seen", number_text(record.samples_seen))]
    progress = record.series.get("progress")
    if progress and record.state != "done":
        rows.append(("of the run", f"{progress[-1][1]:.1%}"))
    lives = max(1, record.life_count)
    rows += [("wall time", clock(record.seconds))] if record.seconds else []
    rows.append(("life" if lives == 1 else "lives", f"{lives:,}"))
    useful = record.account.get("compute", 0.0) + record.account.get("communication", 0.0)
    if record.seconds:
        rows.append(("spent training", f"{useful / record.seconds:.1%}"))
    for name, label in (
        ("evaluate/top1", "top-1"),
        ("evaluate/ema_top1", "top-1, average"),
        ("evaluate/map", "mAP"),
        ("evaluate/ema_map", "mAP, average"),
        ("evaluate/precision1", "precision@1"),
        ("train/loss", "loss"),
        ("images_per_second", "images/s, median"),
        ("mfu", "MFU, median"),
    ):
        points = record.series.get(name)
        if points:
            value = _median(points) if "median" in label else points[-1][1]
            share = name.startswith("evaluate/") or name == "mfu"
            rows.append((label, f"{value:.2%}" if share else number_text(value)))
    rows.append(("bad samples", f"{len({_sample(event) for event in _of_kind(record, 'bad_sample')}):,}"))
    return rows


def _story(record: RunRecord) -> str:
    """Say in a few sentences what happened to a run, what that cost, and whether anything went wrong."""
    said, lives = [], record.life_accounts
    if len(lives) > 1:
        again, between = _span(record.account["redone"]), _span(record.between_seconds)
        times = number_of(len(lives) - 1, "interruption")
        said.append(f"{times}: {again} of work were done again, {between} passed between lives.")
    elif lives:
        said.append("No interruption.")
    said += [block.text for block in _continuity(record)]
    trouble = [f"{label}: {times:,}" for label, times in _troubles(record)]
    told = "; ".join(trouble)
    said.append(f"{told[0].upper()}{told[1:]}." if told else _NO_TROUBLE)
    reason = record.markers.get(record.state, {}).get("reason")
    if reason:
        said.append(f"The run is {record.state}: {reason}.")
    elif record.error:
        said.append(f"It ended by an error: {record.error}.")
    elif lives and record.state not in record.markers:  # a supervisor leaves one of its own, `attempt`
        said.append(f"The last sign of life came {_span(max(0.0, time.time() - lives[-1].ended))} ago.")
    return " ".join(said)


def _time(record: RunRecord) -> list[Block]:
    lives = record.life_accounts
    if not record.seconds:
        return []
    classes = {name.replace("_", " "): value for name, value in record.account.items()}
    began, ended = _moment(lives[0].began), _moment(lives[-1].ended)
    ended = ended.removeprefix(f"{began.split()[0]} ")
    charts = [Chart("every second of an average rank since the first start", stacked_bar(classes), wide=True)]
    if len(lives) > 1:
        chart = timeline([(life.began, life.ended, life.seconds) for life in lives])
        charts.append(Chart(f"each life in the same colours, from {began} to {ended} UTC", chart, wide=True))
    return [*charts, Fold("in numbers", [_account(record), _lives(record)])]


def _account(record: RunRecord) -> Table:
    rows = [
        (name.replace("_", " "), _span(value), f"{value / record.seconds:.1%}")
        for name, value in record.account.items()
        if value > 0
    ]
    if record.between_seconds:
        between = record.between_seconds
        rows.append(("… of idle, between lives", _span(between), f"{between / record.seconds:.1%}"))
    rows.append(("all", _span(record.seconds), "100.0%"))
    return Table(rows, ("class", "time per rank", "share"), right=(1, 2))


def _lives(record: RunRecord) -> Table:
    lives = record.life_accounts
    beginnings = {event.get("life"): event for event in record.lives}
    gaps = [_span(later.began - life.ended) for life, later in pairwise(lives)]
    rows = [
        # No event where a life ended before its first step.
        (str(number), *_life(life, beginnings.get(life.life, {})), gap)
        for number, (life, gap) in enumerate(zip(lives, [*gaps, "–"], strict=True), start=1)
    ]
    return Table(rows[-_MOST_ROWS:], _LIFE_HEAD, right=(0, 2, 3, 4, 5, 6, 7, 8))


def _life(life: LifeAccount, beginning: dict[str, Any]) -> tuple[str, ...]:
    begin = beginning.get("samples_seen")
    return (
        _moment(life.began),
        clock(life.ended - life.began),
        "–" if begin is None else number_text(float(begin)),
        "–" if begin is None else number_text(max(life.samples_seen, begin)),
        str(beginning.get("world_size", "–")),
        _span(life.seconds["start"] + life.seconds["compile"]),
        _span(life.seconds["redone"]),
    )


def _bad_samples(record: RunRecord) -> list[Block]:
    """A sample comes again in each epoch; what a later life came to once more is the same position."""
    met = {(*_sample(event), event.get("position")): event for event in _of_kind(record, "bad_sample")}
    if not met:
        return []
    times = Counter(_sample(event) for event in met.values())
    reasons = {_sample(event): str(event.get("reason", "–")) for event in met.values()}
    rows = [(one[1], reasons[one], f"{count:,}") for one, count in times.most_common(_MOST_BAD)]
    more = f"; the {_MOST_BAD} most frequent" if len(times) > _MOST_BAD else ""
    counted = (
        f"Samples that could not be used: {len(times):,}, met {len(met):,} ×{more}. In training others "
        "took their place; which, and at which position, stands in events.jsonl and events/."
    )
    return [Text(counted), Table(rows, ("sample", "what is wrong", "times"), right=(2,))]


def _happened(record: RunRecord) -> list[Block]:
    counted = [(label, f"{times:,}") for label, times in _troubles(record)]
    blocks: list[Block] = [Table(counted, ("what", "times"), right=(1,)) if counted else Text(_NO_TROUBLE)]
    blocks += _continuity(record)
    others = [event for event in record.events if event.get("kind") != "bad_sample"]
    rows = [
        (
            _moment(event.get("time")),
            str(event.get("kind")),
            _said({key: value for key, value in event.items() if key not in ("time", "kind")}),
        )
        for event in others[-_MOST_ROWS:]
    ]
    if rows:
        title = number_of(len(others), "event" if len(others) == len(record.events) else "other event")
        title += f", the last {_MOST_ROWS}" if len(others) > _MOST_ROWS else ""
        blocks.append(Fold(title, [Table(rows, ("when (UTC)", "what", "details"))], on_paper=False))
    return blocks


def _troubles(record: RunRecord) -> list[tuple[str, int]]:
    """Return what went wrong, and how often."""
    return [(label, times) for kind, label in _TROUBLE.items() if (times := _times(record, kind))]


def _of_kind(record: RunRecord, kind: str) -> list[dict[str, Any]]:
    return [event for event in record.events if event.get("kind") == kind]


def _sample(event: dict[str, Any]) -> tuple[str, str]:
    """Return which sample an event is of: those of training and of evaluation may be called alike."""
    return str(event.get("during")), str(event.get("name", "–"))


def _times(record: RunRecord, kind: str) -> int:
    """Return how often something happened: once, however many ranks tell it and lives come to it again."""
    found = _of_kind(record, kind)
    if kind not in _TOLD_BY_EVERY_RANK:
        return len(found)
    return len({(event.get("step"), event.get("loss")) for event in found if event.get("rank") == 0})


def _continuity(record: RunRecord) -> list[Text]:
    """Say whether the loss after each resume was the one that an earlier life had recorded."""
    found = _of_kind(record, "loss_continuity")
    broken = [event for event in found if not event.get("continuous")]
    if not found:
        return []
    if not broken:
        times = "a resume" if len(found) == 1 else f"{len(found)} resumes"
        bound = max(float(event.get("tolerance", 1e-4)) for event in found)
        return [Text(f"After {times} the loss was the one recorded before, within {bound:.2g}.")]
    told = [
        Text(
            f"After a resume the loss at image {event.get('samples_seen')} was {event.get('loss')}, "
            f"recorded before: {event.get('recorded')}."
        )
        for event in broken[:_MOST_BROKEN]
    ]
    if len(broken) > _MOST_BROKEN:
        told.append(Text(f"So it was after {len(broken):,} of {len(found):,} resumes."))
    return told


def _compared(record: RunRecord) -> list[Block]:
    rows = []
    for name, one in comparison(record).items():
        label, unit = _UNITS.get(name, (name.replace("_", " "), 1.0))
        figures = (number_text(one[key] / unit) for key in ("predicted", "measured"))
        rows.append((label, *figures, f"{one['error']:+.1%}"))
    if not rows and record.plan:
        return [Text("No step has been recorded since the plan was made.")]
    if not rows:
        return [
            Text("There is no plan to compare with: no hardware profile fits the device that the run had.")
        ]
    table = Table(rows, ("", "predicted", "measured", "error"), right=(1, 2, 3))
    each = "Each start plans anew, by what its machine attains then; measured are the steps of the last life."
    return [Text(each), table] if len(record.lives) > 1 else [table]


def _environment(record: RunRecord) -> list[Block]:
    rows = [(key.replace("_", " "), _said(value)) for key, value in record.environment.items()]
    return [Table(rows)] if rows else []


def _of_last_life(record: RunRecord, points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    begin = record.lives[-1].get("samples_seen") if record.lives else None
    return [point for point in points if not is_number(begin) or point[0] > begin]


def _median(points: Sequence[tuple[int, float]]) -> float:
    """Return the one in the middle: between two batches there is none."""
    return statistics.median_high(value for _, value in points)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 400 else f"{text[:400]} …"


def _span(seconds: float) -> str:
    """Write a length of time, to a tenth of a second where that can be seen."""
    return f"{seconds:.1f} s" if seconds < _MOST_PLAIN_SECONDS else clock(seconds)


def _moment(seconds: Any) -> str:
    if not is_number(seconds):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
