"""Counts that add up over batches and ranks exactly, and the metrics made of them. Knows no process group.

Every count is an integer tensor, so a sum over ranks gives the same result in any order; `reduce` takes the
summing function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from coatnet.training.average_precision import area_under_steps, mean_of_known

SumOverRanks = Callable[[Tensor], object]
# Loss values are added as integers of 2^-20, so the sum does not depend on the order of ranks either.
_LOSS_UNIT = 2.0**-20
# Average precision from a histogram of scores: 512 bins keep it within 0.002 of the exact value.
_BINS = 512
_SCORE_RANGE = 16.0


class SingleLabelMetrics:
    """Top-1, top-5, loss and the confusion matrix of a single-label evaluation."""

    def __init__(
        self, num_classes: int, *, device: torch.device | str = "cpu", confusion: bool = True
    ) -> None:
        self.num_classes = num_classes
        self._totals = torch.zeros(4, dtype=torch.int64, device=device)
        size = num_classes if confusion else 0
        self.confusion = torch.zeros(size, size, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, targets: Tensor, *, losses: Tensor) -> None:
        """Count a batch; an image whose logits are not finite counts as wrong.

        Shape: logits (B, K); targets int64 (B,); losses (B,).
        """
        # How many classes come before the label: to sort 21,841 takes several times as long. Of equal logits,
        # many in bf16, lower classes come first, as for `coatnet evaluate`; topk would take any.
        own, classes = logits.gather(1, targets[:, None]), torch.arange(logits.shape[1], device=logits.device)
        before = ((logits > own) | ((logits == own) & (classes < targets[:, None]))).sum(dim=1)
        finite = logits.isfinite().all(dim=1)
        self._totals += torch.stack(
            [
                torch.full((), len(targets), device=logits.device),
                (finite & (before < 1)).sum(),
                (finite & (before < 5)).sum(),
                _as_units(losses),
            ]
        )
        if len(self.confusion):
            cells = targets * self.num_classes + logits.argmax(dim=1)
            # `bincount` looks for the largest cell, for which a GPU is waited for.
            self.confusion.view(-1).scatter_add_(0, cells, torch.ones_like(cells))

    def reduce(self, sum_over_ranks: SumOverRanks) -> None:
        """Add up the counts of all ranks, in place."""
        sum_over_ranks(self._totals)
        if len(self.confusion):
            sum_over_ranks(self.confusion)

    def result(self) -> dict[str, float]:
        """Return samples, top1, top5 (0 to 1) and loss."""
        samples, first, fifth, loss = (int(value) for value in self._totals.tolist())
        count = max(1, samples)
        return {
            "samples": samples,
            "top1": first / count,
            "top5": fifth / count,
            "loss": loss * _LOSS_UNIT / count,
        }


class MultiLabelMetrics:
    """Precision@1, mean average precision and loss of a multi-label evaluation."""

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self._totals = torch.zeros(3, dtype=torch.int64, device=device)
        self._histogram = torch.zeros(2, num_classes, _BINS, dtype=torch.int64, device=device)

    def update(self, scores: Tensor, targets: Tensor, *, losses: Tensor) -> None:
        """Count a batch; an image of which a score is not finite counts as wrong, and last in every class.

        Shape: scores (B, K) are log odds; targets (B, K) of presences; losses (B,).
        """
        present, finite = targets > 0.5, scores.isfinite().all(dim=1, keepdim=True)
        first = (present.gather(1, scores.argmax(dim=1, keepdim=True)) & finite).sum()
        self._totals += torch.stack(
            [torch.full((), len(targets), device=scores.device), first, _as_units(losses)]
        )
        bounded = scores.float().where(finite, -_SCORE_RANGE).clamp(-_SCORE_RANGE, _SCORE_RANGE)
        scaled = (bounded + _SCORE_RANGE) / (2 * _SCORE_RANGE)
        bins = (scaled * (_BINS - 1)).round().long()
        for row, chosen in enumerate((present, ~present)):
            self._histogram[row].scatter_add_(1, bins.T, chosen.T.long())

    def reduce(self, sum_over_ranks: SumOverRanks) -> None:
        """Add up the counts of all ranks, in place."""
        sum_over_ranks(self._totals)
        sum_over_ranks(self._histogram)

    def result(self) -> dict[str, float]:
        """Return samples, precision1, map (mean of the classes with a positive), map_micro and loss."""
        samples, first, loss = (int(value) for value in self._totals.tolist())
        count = max(1, samples)
        return {
            "samples": samples,
            "precision1": first / count,
            "map": mean_of_known(self._areas(self._histogram)),
            "map_micro": mean_of_known(self._areas(self._histogram.sum(dim=1, keepdim=True))),
            "loss": loss * _LOSS_UNIT / count,
        }

    @staticmethod
    def _areas(histogram: Tensor) -> Tensor:
        positive, negative = histogram.flip(2)
        return area_under_steps(positive, negative, seen=0.5)


def _as_units(losses: Tensor) -> Tensor:
    finite = losses.detach().double().nan_to_num(posinf=1e6, neginf=-1e6, nan=1e6)
    return (finite / _LOSS_UNIT).round().long().sum()
