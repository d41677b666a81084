"""Every figure of an evaluation, from its predictions. Knows no model and no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.predictions import Predictions

CALIBRATION_BINS = 15  # as in Guo et al.
_Z_95 = 1.959964


def figures(predictions: Predictions, *, classes: int) -> dict[str, Any]:
    """Return an evaluation in numbers.

    Returns:
        `top1`, `top5`: shares of the samples, with Wilson's 95 % intervals; `balanced_top1`: mean of the
        classes' own accuracies; `loss`: mean cross entropy in nats; `ece`: expected calibration error over 15
        bins of equal width; `non_finite`: samples whose logits held NaN or infinity, which count as wrong.
    """
    count = len(predictions)
    top1, top5 = int(predictions.correct.sum()), int(predictions.correct_top.sum())
    own = [row["top1"] for row in per_class(predictions, names=[""] * classes) if row["samples"]]
    return {
        "samples": count,
        "classes": classes,
        "top1": top1 / count,
        "top5": top5 / count,
        "top1_interval": wilson_interval(top1, count),
        "top5_interval": wilson_interval(top5, count),
        "balanced_top1": float(np.mean(own)),
        "loss": float(predictions.loss.mean()),
        "ece": expected_calibration_error(predictions),
        "non_finite": int((predictions.guess < 0).sum()),
    }


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    share, z2 = hits / count, _Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return low, 1.0 if hits == count else min(1.0, centre + half)


def expected_calibration_error(predictions: Predictions) -> float:
    """Return the mean distance between confidence and accuracy.

    Source: Guo et al., arXiv 1706.04599, equation 3.
    """
    gaps = calibration_gaps(predictions.confidence, predictions.correct)
    return float(np.abs(gaps).sum() / len(predictions))


def calibration_gaps(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return by how much confidence exceeds what is right, summed in bins of equal width.

    Shape: (n,) both → (CALIBRATION_BINS,).
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return np.bincount(bins, confidence - correct, minlength=CALIBRATION_BINS).astype(np.float64)


def per_class(predictions: Predictions, *, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per class: samples, accuracy, and how often the class was guessed."""
    count = len(names)
    samples = np.bincount(predictions.label, minlength=count)
    hits = np.bincount(predictions.label[predictions.correct], minlength=count)
    guessed = np.bincount(predictions.guess[predictions.guess >= 0], minlength=count)
    return [
        {
            "class": name,
            "samples": int(samples[i]),
            "top1": float(hits[i] / samples[i]) if samples[i] else None,
            "guessed": int(guessed[i]),
        }
        for i, name in enumerate(names)
    ]


def confusion(predictions: Predictions, *, classes: int) -> NDArray[np.int64]:
    """Count (label, first guess) pairs; a table of all that could be takes 3.6 GiB for 21,841 classes.

    Shape: (pairs that occur, 3) of label, guess and count, by label and guess; samples without a finite guess
    are left out.
    """
    finite = predictions.guess >= 0
    pairs = predictions.label[finite] * classes + predictions.guess[finite]
    found, counts = np.unique(pairs, return_counts=True)
    return np.stack([found // classes, found % classes, counts], axis=1)


def confusion_table(pairs: NDArray[np.int64], *, classes: int) -> NDArray[np.int64]:
    """Return the same as a table, rows being labels. Shape: (pairs, 3) → (classes, classes)."""
    table = np.zeros((classes, classes), dtype=np.int64)
    table[pairs[:, 0], pairs[:, 1]] = pairs[:, 2]
    return table


def most_confused(pairs: NDArray[np.int64], *, names: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """Return the pairs that occur most often among those of a wrong guess."""
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    most = wrong[np.argsort(-wrong[:, 2], kind="stable")[:limit]].tolist()
    return [{"class": names[row], "taken_for": names[column], "count": count} for row, column, count in most]
