"""Every figure of an evaluation with several labels per image. Knows no model and no file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coatnet.runtime.progress import progress
from coatnet.training.average_precision import (
    Ranking,
    area_under_steps,
    drawn_average_precisions,
    mean_of_known,
)
from finetune.evaluation.figures import CALIBRATION_BINS, calibration_gaps, wilson_interval
from finetune.evaluation.predictions import MultiLabelPredictions

RESAMPLES = 200
_SEED = 20210604  # any fixed number gives the same intervals every time
_PROGRESS_FROM = 1_000_000  # pairs of an image and a class, whose intervals take seconds
_BLOCK_CLASSES, _BLOCK_IMAGES = 64, 256
_MOST_STEPS = 1024  # of the ranking of all pairs where it is drawn anew


def multi_label_figures(predictions: MultiLabelPredictions, *, resamples: int = 0) -> dict[str, Any]:
    """Return an evaluation in numbers, with the intervals of so many resamples.

    Returns:
        `labels`: of all images together; `judged_classes`: those with a positive, whose average precisions
        `map` is the mean of; `map_micro`: average precision of all pairs of an image and a class in one
        ranking; `precision1`: share of the images whose first guess is among their labels; their intervals at
        95 %, for both mAPs by draws of as many images with replacement, None where nobody asked; `loss`: mean
        over images, summed over classes, in nats; `ece`: expected calibration error of the probabilities of
        all pairs over 15 bins of equal width; `non_finite`: samples whose logits held NaN or infinity, which
        come last in every ranking.
    """
    count, classes = predictions.present.shape
    draws = _draws(count, resamples=resamples) if resamples else None
    each, spread, gaps = [], [], np.zeros(CALIBRATION_BINS)
    shown = bool(resamples) and count * classes >= _PROGRESS_FROM
    with progress(classes, "figures", "classes", enabled=shown) as bar:
        for scores, present in _columns(predictions):
            each.append(_average_precision(scores, present))
            if draws is not None and not np.isnan(each[-1]):
                spread.append(drawn_average_precisions(scores, present, draws))
            gaps += calibration_gaps(scores.double().sigmoid().numpy(), present.numpy())
            bar.advance(1)
    hits = int(predictions.correct.sum())
    precisions = torch.tensor(each, dtype=torch.float64)
    macro, of_all = mean_of_known(precisions), _of_all_pairs(predictions)
    return {
        "samples": count,
        "classes": classes,
        "labels": int(predictions.present.sum()),
        "judged_classes": int((~precisions.isnan()).sum()),
        "map": macro,
        "map_micro": of_all,
        "precision1": hits / count,
        "map_interval": None if draws is None else _interval(macro, _means(spread)),
        "map_micro_interval": None if draws is None else _interval(of_all, _drawn_of_all(predictions, draws)),
        "precision1_interval": wilson_interval(hits, count),
        "loss": float(predictions.loss.mean()),
        "ece": float(np.abs(gaps).sum() / (count * classes)),
        "non_finite": int((~predictions.is_finite).sum()),
    }


def classes_of_multi_label(
    predictions: MultiLabelPredictions, *, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per class: images that show it, average precision, and what is said at one half.

    `guessed` counts the images with a probability of one half or more, `right` those of them that show the
    class, `expected` adds up the probabilities: where it is far from `samples`, they are not calibrated.
    """
    rows = []
    for name, (scores, present) in zip(names, _columns(predictions), strict=True):
        precision, guessed = _average_precision(scores, present), scores >= 0
        rows.append(
            {
                "class": name,
                "samples": int(present.sum()),
                "ap": None if np.isnan(precision) else precision,
                "guessed": int(guessed.sum()),
                "right": int((guessed & present).sum()),
                "expected": round(float(scores.double().sigmoid().sum()), 3),
            }
        )
    return rows


def _average_precision(scores: Tensor, present: Tensor) -> float:
    """Return one class's average precision, NaN where no image shows it. Shape: (n,), (n,)."""
    if not present.any():  # of thousands of classes most: a ranking's dozen of small operations adds up
        return float("nan")
    ranking = Ranking(scores[present])
    ranking.add(scores[None], present[None])
    return ranking.average_precision()


def _of_all_pairs(predictions: MultiLabelPredictions) -> float:
    """Return the average precision of all pairs of an image and a class in one ranking."""
    ranking = Ranking(torch.from_numpy(predictions.scores[predictions.present]))
    for scores, present in _blocks(predictions):
        ranking.add(scores, present)
    found = ranking.average_precision()
    return 0.0 if np.isnan(found) else found


def _drawn_of_all(predictions: MultiLabelPredictions, draws: Tensor) -> Tensor:
    """Return the same in each of R samples. Shape: draws (n, R) → (R,).

    An image's pairs come together in a sample: they are counted once, by at most so many steps of the scores,
    and taken as often as it comes. A pass over all pairs for each sample is far slower with many classes.
    """
    edges = torch.from_numpy(predictions.scores[predictions.present]).unique()
    is_exact = len(edges) <= _MOST_STEPS
    if not is_exact:
        edges = edges[torch.linspace(0, len(edges) - 1, _MOST_STEPS).long()]
    width = len(edges) + 1
    counts = torch.zeros(2, draws.shape[1], width, dtype=torch.float64)
    for begin in range(0, len(predictions), _BLOCK_IMAGES):
        block = slice(begin, begin + _BLOCK_IMAGES)
        scores, present = (torch.from_numpy(one[block]) for one in (predictions.scores, predictions.present))
        cells = torch.searchsorted(edges, scores, right=True) + width * torch.arange(len(scores))[:, None]
        for count, some in zip(counts, (cells[present], cells.flatten()), strict=True):
            by_image = some.bincount(minlength=len(scores) * width).view(len(scores), width)
            count += draws[block].T.double() @ by_image.double()
    positive, all_ = counts[:, :, 1:].flip(2)
    return area_under_steps(positive, all_ - positive, seen=1.0 if is_exact else 0.5)


def _means(spread: Sequence[Tensor]) -> Tensor:
    """Return the mean over the classes in each resample. Shape: (R,) of each class → (R,), or nothing."""
    return torch.stack(tuple(spread)).nanmean(dim=0) if spread else torch.empty(0)


def _blocks(predictions: MultiLabelPredictions) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scores and presences of some classes after the others: a copy of all would double the memory.

    Shape: (k, n) each.
    """
    scores, present = torch.from_numpy(predictions.scores), torch.from_numpy(predictions.present)
    for begin in range(0, scores.shape[1], _BLOCK_CLASSES):
        block = slice(begin, begin + _BLOCK_CLASSES)
        yield scores[:, block].T.contiguous(), present[:, block].T.contiguous()


def _columns(predictions: MultiLabelPredictions) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scores and presences of one class after the other. Shape: (n,) each."""
    for scores, present in _blocks(predictions):
        yield from zip(scores, present, strict=True)


def _draws(count: int, *, resamples: int) -> Tensor:
    """Return how often each image comes in each resample. Shape: float32 (count, resamples)."""
    rng, times = np.random.default_rng(_SEED), torch.empty(count, resamples)
    for column in times.T:
        column[:] = torch.from_numpy(np.bincount(rng.integers(count, size=count), minlength=count))
    return times


def _interval(found: float, values: Tensor) -> tuple[float, float]:
    """Return the basic bootstrap's interval, which mirrors the draws at what was found.

    Where positives are few, average precision is too high in the mean, and once more so in the draws, in
    which images repeat: as these lie above what was found, it lies above the truth, and may lie above the
    whole interval.
    """
    known = values[~values.isnan()]
    if not len(known):
        return 0.0, 0.0
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return max(0.0, 2 * found - high), min(1.0, 2 * found - low)
