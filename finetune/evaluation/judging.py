"""From predictions to figures and tables, whatever the labels. Knows no model and no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coatnet.training.sections import FIGURES
from data_pipeline.record import SampleSource
from finetune.evaluation.figures import confusion, figures, most_confused, per_class
from finetune.evaluation.measure import AnyPredictions
from finetune.evaluation.multi_label import RESAMPLES, classes_of_multi_label, multi_label_figures
from finetune.evaluation.predictions import MultiLabelPredictions

_CONFUSED_SHOWN = 10


def shares_of(corpus: SampleSource | None) -> tuple[str, ...]:
    """Return the names of those figures of an evaluation that rise with its worth, the decisive one first."""
    return FIGURES["single" if corpus is None else corpus.label_kind]


def judge(predictions: AnyPredictions, *, classes: int) -> dict[str, Any]:
    """Return the figures, without intervals where these take long."""
    if isinstance(predictions, MultiLabelPredictions):
        return multi_label_figures(predictions)
    return figures(predictions, classes=classes)


def full_report(predictions: AnyPredictions, *, names: Sequence[str], with_confusion: bool) -> dict[str, Any]:
    """Return figures, intervals and the tables behind them as plain values.

    Args:
        predictions, names: of what, and of its classes.
        with_confusion: all pairs of label and guess too, which only a single label has.
    """
    if isinstance(predictions, MultiLabelPredictions):
        found = multi_label_figures(predictions, resamples=RESAMPLES)
        return {**found, "per_class": classes_of_multi_label(predictions, names=names)}
    pairs = confusion(predictions, classes=len(names))
    return {
        **figures(predictions, classes=len(names)),
        "per_class": per_class(predictions, names=names),
        "most_confused": most_confused(pairs, names=names, limit=_CONFUSED_SHOWN),
        "confusion": pairs.tolist() if with_confusion else None,
    }
