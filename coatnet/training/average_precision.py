"""Average precision, exact from scores or from counts by score. Knows no model and no group of processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Ranking:
    """Pairs of an image and a class in one ranking, counted at the positives' scores: nothing is sorted.

    Exact, and in the memory of the positives, which are few, instead of eight times that of all pairs. Equal
    scores are one step of the precision-recall curve, as in scikit-learn's average_precision_score, so the
    order in which images come changes nothing.
    """

    def __init__(self, positive_scores: Tensor, times: NDArray[np.int32] | None = None) -> None:
        """Take the scores of all pairs that are right, and how often each image counts in each of R samples.

        Shape: positive_scores (P,); times (R, N), None for each once.
        """
        self._steps = positive_scores.unique()
        self._times = times
        self._counts = np.zeros((2, 1 if times is None else len(times), len(self._steps) + 1))

    def add(self, scores: Tensor, present: Tensor) -> None:
        """Count some classes.

        Shape: scores (k, N), present bool (k, N).
        """
        steps = torch.searchsorted(self._steps, scores.flatten().contiguous(), right=True).numpy()
        hits = present.flatten().nonzero()[:, 0].numpy()
        for positive, all_, times in zip(*self._counts, self._each_draw(), strict=True):
            weights = None if times is None else np.tile(times, len(scores)).astype(np.float64)
            positive += _binned(steps[hits], None if weights is None else weights[hits], len(positive))
            all_ += _binned(steps, weights, len(all_))

    def average_precision(self) -> Tensor:
        """Return the area under the precision-recall steps, NaN where there is no positive.

        Shape: float64 (R,).
        """
        above = self._counts[:, :, :0:-1]  # what is below every positive counts nowhere
        positive, all_ = torch.from_numpy(above.copy())
        return area_under_steps(positive, all_ - positive)

    def _each_draw(self) -> Iterable[NDArray[np.int32] | None]:
        return [None] if self._times is None else self._times


def _binned(steps: NDArray[np.int64], weights: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.bincount(steps, weights, minlength=count).astype(np.float64)


def area_under_steps(positive: Tensor, negative: Tensor, *, seen: float = 1.0) -> Tensor:
    """Return the area under precision over recall, NaN where there is no positive.

    Args:
        positive, negative: counts by score, the highest first.
        seen: how much of its own step a positive sees: all of it where scores are equal, half of it on
            average where the step is a range of scores whose order is unknown.

    Shape: integers (…, steps) → float64 (…).
    """
    found = positive.cumsum(-1).double()
    right = found - (1 - seen) * (positive - 1).clamp(min=0)
    false = negative.cumsum(-1) - (1 - seen) * negative
    precision = right / (right + false).clamp(min=1)
    return (positive * precision).sum(-1) / positive.sum(-1)


def mean_of_known(values: Tensor) -> float:
    """Return the mean of those that are not NaN, 0 where all are."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0
