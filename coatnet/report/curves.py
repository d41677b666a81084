"""Which curves stand together in a report, and in which order."""

from __future__ import annotations

from coatnet.report.blocks import Block, Chart, Fold
from coatnet.report.chart import line_chart, number_text
from coatnet.report.record import RunRecord

# Title, and the names of the curves that share one axis, by what they are called in the legend.
_TOGETHER = (
    ("loss", {"train/loss": "training", "train/loss_max": "highest rank", "evaluate/loss": "evaluation"}),
    (
        "top-1",
        {"evaluate/top1": "weights", "evaluate/ema_top1": "average", "evaluate/transfer_top1": "transfer"},
    ),
    (
        "mAP",
        {
            "evaluate/map": "weights",
            "evaluate/ema_map": "average",
            "evaluate/map_micro": "micro",
            "evaluate/ema_map_micro": "micro, average",
        },
    ),
    ("precision@1", {"evaluate/precision1": "weights", "evaluate/ema_precision1": "average"}),
    ("images/s", {"images_per_second": "images/s"}),
    ("learning rate", {"train/learning_rate": "learning rate"}),
    ("gradient norm", {"train/gradient_norm": "gradient norm"}),
    ("share of the time that the main rank waits for data", {"data_wait_share": "share"}),
    ("update norm", {"train/update_norm": "update norm"}),
    ("deviation of the stages' outputs", {f"activations/S{n}/deviation": f"S{n}" for n in range(1, 5)}),
    ("largest magnitude of the stages' outputs", {f"activations/S{n}/largest": f"S{n}" for n in range(1, 5)}),
    ("memory, GiB", {"memory_gib": "GiB"}),
    ("MFU", {"mfu": "MFU"}),
)
_SHOWN = 6
# Constant in most runs, or shown elsewhere.
_HIDDEN = ("account/", "progress", "evaluate/samples", "evaluate/ema_samples")


def curves(record: RunRecord) -> list[Block]:
    """Return the charts, the most asked for first; thin lines are restarts."""
    restarts = [float(life.get("samples_seen", 0)) for life in record.lives[1:]]
    charts, used = [], set()
    for title, names in _TOGETHER:
        series = {label: record.series[name] for name, label in names.items() if name in record.series}
        if series.get("highest rank") == series.get("training"):  # one rank
            series.pop("highest rank", None)
        used |= set(names)
        if series:
            first, *others = series
            of_another = not others and first != next(iter(names.values()))
            charts.append(_chart(f"{title}, {first}" if of_another else title, series, restarts))
    for name, points in sorted(record.series.items()):
        if name not in used and not name.startswith(_HIDDEN):
            charts.append(_chart(name, {name: points}, restarts))
    shown: list[Block] = list(charts[:_SHOWN])
    return [*shown, Fold(f"{len(charts) - _SHOWN} more", charts[_SHOWN:])] if charts[_SHOWN:] else shown


def _chart(title: str, series: dict[str, list[tuple[int, float]]], restarts: list[float]) -> Chart:
    last = [
        (title if len(series) == 1 else f"{title}, {label}", number_text(points[-1][1]))
        for label, points in series.items()
    ]
    return Chart(title, line_chart(dict(series), marks=restarts), last)
