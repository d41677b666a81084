"""Average precision, exact from scores or from counts by score. Knows no model and no group of processes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Ranking:
    """Scores in falling order with what was right, ready for any number of times that each image counts.

    Attributes:
        rows: how many there are.

    Equal scores are one step of the precision-recall curve, as in scikit-learn's average_precision_score, so
    the order in which the images come changes nothing.
    """

    def __init__(self, scores: Tensor, present: Tensor) -> None:
        """Sort.

        Shape: scores (N,), present bool (N,): one class; or (N, K) of both: all classes in one ranking.
        """
        ordered, order = scores.flatten().sort(descending=True, stable=True)
        hits = present.flatten()[order]
        self._images = order // (scores.shape[1] if scores.ndim == 2 else 1)
        self.rows = len(order)
        self._positives = self._images[hits]
        is_last = torch.ones_like(hits)
        is_last[:-1] = ordered[1:] != ordered[:-1]
        # Steps without a positive change no sum; the others end at these rows, after so many positives.
        ends = is_last.nonzero()[:, 0]
        found = hits.cumsum(0)[ends]
        has_positive = found.diff(prepend=found.new_zeros(1)) > 0
        self._ends, self._found = ends[has_positive], found[has_positive]

    def average_precision(self, times: NDArray[np.int32] | None = None) -> Tensor:
        """Return the area under the precision-recall steps, NaN where there is no positive.

        Shape: times (R, N), how often each image counts in each of R samples → float64 (R,);
        None, each once → (1,).
        """
        if times is None:
            positive, ranked = self._found[None], self._ends[None] + 1
        else:
            positive = _totals(times, self._positives)[:, self._found - 1]
            ranked = _totals(times, self._images)[:, self._ends]
        found, false = (
            totals.diff(prepend=totals.new_zeros(len(totals), 1)) for totals in (positive, ranked - positive)
        )
        return area_under_steps(found, false)


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
