"""The records that evaluation keeps of each sample; every figure is computed from them. Knows no model.

Records are sorted by the sample's index before anything is summed, in float64: hence neither the batch size
nor the number of ranks that produced them changes a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

TOP = 5
Some = TypeVar("Some", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """What is known of every sample, one row each.

    Shape: both (n,).
    """

    index: NDArray[np.int64]
    loss: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)

    def select(self: Some, rows: NDArray[Any]) -> Some:
        """Return the rows of a mask or of an index array."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Predictions(Rows):
    """What a model said about a corpus with one label per image.

    Shape: `label`, `confidence` (n,); `top` (n, k), best first, k = min(5, classes).
    Units: `confidence` is the model's probability of `top[:, 0]`, `loss` in nats; a row whose logits are not
    finite has confidence 0, loss infinity and -1 in `top`.
    """

    label: NDArray[np.int64]
    top: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def guess(self) -> NDArray[np.int64]:
        """The first guess.

        Shape: (n,)
        """
        return self.top[:, 0]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the first guess is the label.

        Shape: (n,)
        """
        return self.guess == self.label

    @property
    def correct_top(self) -> NDArray[np.bool_]:
        """Whether the label is among the first five guesses.

        Shape: (n,)
        """
        return (self.top == self.label[:, None]).any(axis=1)


@dataclass(frozen=True)
class MultiLabelPredictions(Rows):
    """What a model said about a corpus with several labels per image.

    Shape: `present`, `scores` (n, K).
    Units: `scores` are log odds to three decimals, the sigmoid of which is a probability; `loss` is in nats,
    summed over classes; a row whose logits are not finite has loss and scores of infinity, these below all
    others.
    """

    present: NDArray[np.bool_]
    scores: NDArray[np.float32]

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """Whether the logits were.

        Shape: (n,)
        """
        return np.isfinite(self.loss)

    @property
    def guess(self) -> NDArray[np.int64]:
        """The first guess, of equal scores the class of lower number; -1 where logits were not finite.

        Shape: (n,)
        """
        return np.where(self.is_finite, self.scores.argmax(axis=1), -1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the first guess is among the labels.

        Shape: (n,)
        """
        return self.present[np.arange(len(self)), self.guess] & self.is_finite


def join(parts: Sequence[Some]) -> Some:
    """Join what batches or ranks recorded, sorted by sample.

    Raises:
        ValueError: a sample was predicted twice.
    """
    names, kind = [field.name for field in fields(parts[0])], type(parts[0])
    joined = kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    order = np.argsort(joined.index, kind="stable")
    if (np.diff(joined.index[order]) == 0).any():
        raise ValueError("a sample was evaluated more than once")
    in_order = np.array_equal(order, np.arange(len(order)))
    return joined if in_order else joined.select(order)  # a copy, of gigabytes where classes are many
