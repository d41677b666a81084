"""A run's model in plain words: what it is, how it is trained, how good it became. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coatnet.config.plain_text import giga
from coatnet.model.config import ModelConfig
from coatnet.model.cost import model_cost
from coatnet.report.blocks import Block, Table, Text
from coatnet.report.chart import number_text
from coatnet.report.record import RunRecord

_SHOWN_CLASSES = 12
_NOTE = (
    "The card is made from the run's files. Licence, intended use and biases of the data are for its author "
    "to say."
)
_SHARES = ("top1", "top5", "map", "map_micro", "precision1", "ece")


def model_line(record: RunRecord) -> str:
    """Return the model in half a line, empty where the run directory does not tell."""
    model = _model(record)
    if model is None:
        return ""
    size = _sizes(record, model)[-1]
    if not record.facts:
        return f"{model.name} at {size} px"
    return f"{model.name} at {size} px, {number_text(model_cost(model, size).parameters)} parameters"


def model_card(record: RunRecord) -> list[Block]:
    """Return the card; it claims nothing that was not measured, and no size before the classes are known."""
    model = _model(record)
    if model is None:
        return []
    config = record.config
    sizes = _sizes(record, model)
    size = sizes[-1]
    cost, average = model_cost(model, size), config.get("ema") or "none"
    rows = [
        ("architecture", f"CoAtNet (Dai et al., arXiv 2106.04803): {_architecture(model)}"),
        ("size", f"{cost.parameters:,} parameters, {giga(cost.macs)} GMAC per image at {size} px"),
        ("classes", _classes(record, model)),
        ("trained on", _corpora(_section(record, "data"))),
        ("recipe", _recipe(record, sizes)),
        ("precision", f"{config.get('precision', 'fp32')}, moving average of the weights: {average}"),
        ("evaluated on", str(_section(record, "data").get("evaluate") or "nothing")),
        ("results", _results(record)),
        ("checkpoint", str(record.facts.get("checkpoint") or "none yet")),
    ]
    if config.get("init"):
        rows.insert(3, ("begins with", str(config["init"])))
    if not record.facts:
        del rows[1:3]
    once = record.summary.get("every_sample_once")
    if once is not None:
        rows.append(("every sample once", "yes, proved by a digest of all positions" if once else "NO"))
    return [Table(rows), Text(_NOTE)]


def _model(record: RunRecord) -> ModelConfig | None:
    known = record.facts.get("model") or _section(record, "model")
    try:
        return ModelConfig(**known) if known else None
    except (TypeError, ValueError):
        return None  # written by another version


def _sizes(record: RunRecord, model: ModelConfig) -> list[int]:
    """Return the sides of the images of the run's phases, in order."""
    phases = _section(record, "train").get("phases") or [_section(record, "augment")]
    return [int(phase.get("image_size") or model.image_size) for phase in phases]


def _section(record: RunRecord, name: str) -> Mapping[str, Any]:
    found = record.config.get(name)
    return found if isinstance(found, dict) else {}


def _architecture(model: ModelConfig) -> str:
    said = [model.name, model.layout or "C-C-T-T"]
    for what in ("depths", "widths"):
        if getattr(model, what):
            said.append(f"{what} {'-'.join(map(str, getattr(model, what)))}")
    return ", ".join(said)


def _classes(record: RunRecord, model: ModelConfig) -> str:
    names = [str(name) for name in record.facts.get("classes", [])]
    if not names:
        return str(model.num_classes)
    more = f" and {len(names) - _SHOWN_CLASSES:,} more" if len(names) > _SHOWN_CLASSES else ""
    return f"{len(names):,}: {', '.join(names[:_SHOWN_CLASSES])}{more}"


def _corpora(data: Mapping[str, Any]) -> str:
    found = data.get("train")
    entries = found if isinstance(found, list) else []
    return ", ".join(str(one.get("path")) if isinstance(one, dict) else str(one) for one in entries) or "–"


def _recipe(record: RunRecord, sizes: list[int]) -> str:
    train, optimizer = _section(record, "train"), _section(record, "optimizer")
    schedule, loss = _section(record, "schedule"), _section(record, "loss")
    later = "".join(
        f", {one.get('global_batch')} from {one.get('at')} on" for one in train.get("batch_changes") or ()
    )
    parts = [
        f"{train.get('duration', '–')}, global batch {train.get('global_batch', '–')}{later}",
        f"images of {', then '.join(map(str, sizes))} px",
        f"AdamW {optimizer.get('learning_rate', '–')}, weight decay {optimizer.get('weight_decay', '–')}",
        f"{schedule.get('shape', '–')} after {schedule.get('warmup', '–')} of warm-up",
        f"{loss.get('name', 'softmax')} loss, smoothing {loss.get('smoothing', 0)}",
    ]
    return "; ".join(parts)


def _results(record: RunRecord) -> str:
    found = {
        name.removeprefix("evaluate/"): points[-1][1]
        for name, points in record.series.items()
        if name.startswith("evaluate/") and not name.endswith("samples")
    }
    said = [
        f"{name} {value:.2%}"
        if name.removeprefix("ema_").removeprefix("transfer_") in _SHARES
        else f"{name} {number_text(value)}"
        for name, value in found.items()
    ]
    return ", ".join(said) or "not evaluated"
