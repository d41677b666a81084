"""Every figure of an evaluation with several labels per image. Knows no model and no file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coatnet.runtime.progress import Progress, progress
from coatnet.training.average_precision import Ranking, mean_of_known
from finetune.evaluation.figures import CALIBRATION_BINS, calibration_gaps, wilson_interval
from finetune.evaluation.predictions import MultiLabelPredictions

RESAMPLES = 200
_SEED = 20210604  # any fixed number gives the same intervals every time
_PROGRESS_FROM = 1_000_000  # pairs of an image and a class, whose intervals take seconds
_MOST_COUNTS = 1 << 23  # of steps times resamples at once: 128 MiB for all and for the right ones
_BLOCK_CLASSES = 64


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
    passes = [None, *_shares_of(draws, steps=int(predictions.present.sum()))]
    shown = bool(resamples) and count * classes >= _PROGRESS_FROM
    with progress((1 + len(passes)) * classes, "figures", "steps", enabled=shown) as bar:
        for scores, present in _columns(predictions):
            each.append(_average_precision(scores, present))
            shares = _shares_of(draws, steps=int(present.sum()))
            drawn = [_average_precision(scores, present, some) for some in shares]
            spread += [torch.cat(drawn)] if drawn else []
            gaps += calibration_gaps(scores.double().sigmoid().numpy(), present.numpy())
            bar.advance(1)
        pooled = [_of_all_pairs(predictions, some, bar) for some in passes]
    hits = int(predictions.correct.sum())
    precisions = torch.cat(each)
    macro, of_all = mean_of_known(precisions), mean_of_known(pooled[0])
    return {
        "samples": count,
        "classes": classes,
        "labels": int(predictions.present.sum()),
        "judged_classes": int((~precisions.isnan()).sum()),
        "map": macro,
        "map_micro": of_all,
        "precision1": hits / count,
        "map_interval": _interval(macro, torch.stack(spread).nanmean(dim=0)) if spread else None,
        "map_micro_interval": _interval(of_all, torch.cat(pooled[1:])) if spread else None,
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
        precision, guessed = float(_average_precision(scores, present)), scores >= 0
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


def _average_precision(scores: Tensor, present: Tensor, times: NDArray[np.int32] | None = None) -> Tensor:
    """Return one class's average precision in each of R samples. Shape: (n,), (n,), (R, n) → (R,)."""
    ranking = Ranking(scores[present], times)
    ranking.add(scores[None], present[None])
    return ranking.average_precision()


def _of_all_pairs(
    predictions: MultiLabelPredictions, times: NDArray[np.int32] | None, bar: Progress
) -> Tensor:
    """Return the average precision of all pairs of an image and a class in each of R samples. Shape: (R,)."""
    ranking = Ranking(torch.from_numpy(predictions.scores[predictions.present]), times)
    for scores, present in _blocks(predictions):
        ranking.add(scores, present)
        bar.advance(len(scores))
    return ranking.average_precision()


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


def _draws(count: int, *, resamples: int) -> NDArray[np.int32]:
    """Return how often each image comes in each resample. Shape: int32 (resamples, count)."""
    rng = np.random.default_rng(_SEED)
    times = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples)]
    return np.stack(times).astype(np.int32)


def _shares_of(draws: NDArray[np.int32] | None, *, steps: int) -> list[NDArray[np.int32]]:
    """Return so many draws at once that a ranking of so many steps counts them in little memory."""
    if draws is None:
        return []
    at_once = max(1, _MOST_COUNTS // (steps + 1))
    return [draws[begin : begin + at_once] for begin in range(0, len(draws), at_once)]


def _interval(found: float, values: Tensor) -> tuple[float, float]:
    """Return the basic bootstrap's interval, which mirrors the draws at what was found.

    Where positives are few, average precision is too high in the mean, and once more so in the draws, in
    which images repeat: as these lie above what was found, it lies above the truth.
    """
    known = values[~values.isnan()]
    if not len(known):
        return 0.0, 0.0
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return max(0.0, 2 * found - high), min(1.0, 2 * found - low)
