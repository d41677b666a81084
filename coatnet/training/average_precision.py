"""Average precision, exact from scores or from counts by score. Knows no model and no group of processes."""

from __future__ import annotations

import torch
from torch import Tensor


class Ranking:
    """Pairs of an image and a class in one ranking, counted at the positives' scores: nothing is sorted.

    Exact, and in the memory of the positives, which are few, instead of eight times that of all pairs. Equal
    scores are one step of the precision-recall curve, as in scikit-learn's average_precision_score, so the
    order in which images come changes nothing.
    """

    def __init__(self, positive_scores: Tensor) -> None:
        """Take the scores of all pairs that are right. Shape: (P,)."""
        self._steps = positive_scores.unique()
        self._counts = torch.zeros(2, len(self._steps) + 1, dtype=torch.int64)

    def add(self, scores: Tensor, present: Tensor) -> None:
        """Count some classes.

        Shape: scores (k, N), present bool (k, N).
        """
        steps = torch.searchsorted(self._steps, scores.contiguous(), right=True)
        for count, some in zip(self._counts, (steps[present], steps.flatten()), strict=True):
            count += some.bincount(minlength=len(count))

    def average_precision(self) -> float:
        """Return the area under the precision-recall steps, NaN where there is no positive."""
        positive, all_ = self._counts[:, 1:].flip(1)  # what is below every positive counts nowhere
        return float(area_under_steps(positive, all_ - positive))


def drawn_average_precisions(scores: Tensor, present: Tensor, times: Tensor) -> Tensor:
    """Return one class's average precision in R samples of its images, NaN in those without a positive.

    An image counts in all samples at once; a pass over the images for each sample is far slower.

    Args:
        times: how often each image comes in each sample, exact in float32.

    Shape: scores (N,), present bool (N,), times float32 (N, R) → float64 (R,).
    """
    steps = scores[present].unique()
    place = torch.searchsorted(steps, scores.contiguous(), right=True)
    counts = []
    for counted in (present, place > 0):  # what is below every positive, most of a rare class, counts nowhere
        images = counted.nonzero()[:, 0]
        sorted_, order = place[images].sort()
        first = torch.searchsorted(sorted_, torch.arange(1, len(steps) + 1))
        bags = torch.nn.functional.embedding_bag(images[order], times, first, mode="sum")
        counts.append(bags.double().flip(0).T)
    positive, all_ = counts
    return area_under_steps(positive, all_ - positive)


def area_under_steps(positive: Tensor, negative: Tensor, *, seen: float = 1.0) -> Tensor:
    """Return the area under precision over recall, NaN where there is no positive.

    Args:
        positive, negative: counts by score, the highest first.
        seen: how much of its own step a positive sees: all of it where scores are equal, half of it on
            average where the step is a range of scores whose order is unknown.

    Shape: integers (…, steps) → float64 (…).
    """
    positive, negative = (
        positive.double(),
        negative.double(),
    )  # 0.0 times integers would be in single precision
    found = positive.cumsum(-1)
    right = found - (1 - seen) * (positive - 1).clamp(min=0)
    false = negative.cumsum(-1) - (1 - seen) * negative
    precision = right / (right + false).clamp(min=1)
    return (positive * precision).sum(-1) / positive.sum(-1)


def mean_of_known(values: Tensor) -> float:
    """Return the mean of those that are not NaN, 0 where all are."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0
