"""Average precision, exact from scores or from counts by score. Knows no model and no group of processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Ranking:
    """One class's scores in falling order with what was right; images may count any number of times.

    Equal scores are one step of the precision-recall curve, as in scikit-learn's average_precision_score, so
    the order in which the images come changes nothing.
    """

    def __init__(self, scores: Tensor, present: Tensor) -> None:
        """Sort.

        Shape: scores (N,), present bool (N,).
        """
        ordered, order = scores.sort(descending=True, stable=True)
        hits = present[order]
        self._positives = order[hits]
        is_last = torch.ones_like(hits)
        is_last[:-1] = ordered[1:] != ordered[:-1]
        # Steps without a positive change no sum; the others end at these rows, after so many positives.
        ends = is_last.nonzero()[:, 0]
        found = hits.cumsum(0)[ends]
        has_positive = found.diff(prepend=found.new_zeros(1)) > 0
        self._ends, self._found = ends[has_positive], found[has_positive]
        self._images = order[: int(self._ends[-1]) + 1] if len(self._ends) else order[:0]

    def average_precision(self, times: NDArray[np.int32] | None = None) -> Tensor:
        """Return the area under the precision-recall steps, NaN where there is no positive.

        Shape: times (R, N), how often each image counts in each of R samples → float64 (R,);
        None, each once → (1,).
        """
        if times is None:
            positive, ranked = self._found[None], self._ends[None] + 1
        elif not len(self._found):
            return torch.full((len(times),), torch.nan, dtype=torch.float64)
        else:
            positive = _totals(times, self._positives)[:, self._found - 1]
            ranked = _totals(times, self._images)[:, self._ends]
        found, false = (
            totals.diff(prepend=totals.new_zeros(len(totals), 1)) for totals in (positive, ranked - positive)
        )
        return area_under_steps(found, false)


class PooledRanking:
    """All pairs of an image and a class in one ranking, counted at the positives' scores: nothing is sorted.

    Exact, and in the memory of the positives, which are few, instead of eight times that of all pairs.
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
        steps = torch.searchsorted(self._steps, scores.flatten(), right=True).numpy()
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


def _totals(times: NDArray[np.int32], images: Tensor) -> Tensor:
    """Add up along the ranking; numpy takes a tenth of torch's time. Shape: (R, N), (rows,) → (R, rows)."""
    return torch.from_numpy(times.take(images.numpy(), axis=1).cumsum(axis=1))


def mean_of_known(values: Tensor) -> float:
    """Return the mean of those that are not NaN, 0 where all are."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0
