"""The record that evaluation keeps of each sample; every figure is computed from it. Knows no model.

Records are sorted by the sample's index before anything is summed, in float64: hence neither the batch size
nor the number of ranks that produced them changes a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 5


@dataclass(frozen=True)
class Predictions:
    """What a model said about a corpus, one row per sample.

    Shape: `index`, `label`, `confidence`, `loss` (n,); `top` (n, k), best first, k = min(5, classes).
    Units: `confidence` is the softmax probability of `top[:, 0]`, `loss` the cross entropy in nats; a row
    whose logits are not finite has confidence 0, loss infinity and -1 in `top`.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    top: NDArray[np.int64]
    confidence: NDArray[np.float64]
    loss: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the first guess is the label.

        Shape: (n,)
        """
        return self.top[:, 0] == self.label

    @property
    def correct_top(self) -> NDArray[np.bool_]:
        """Whether the label is among the first five guesses.

        Shape: (n,)
        """
        return (self.top == self.label[:, None]).any(axis=1)

    def select(self, rows: NDArray[Any]) -> Predictions:
        """Return the rows of a mask or of an index array."""
        return Predictions(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to_json(self) -> dict[str, list[Any]]:
        """Return plain lists, for gathering across ranks."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def join(cls, parts: Sequence[dict[str, list[Any]]]) -> Predictions:
        """Join the ranks' records, sorted by sample.

        Raises:
            ValueError: a sample was predicted twice.
        """
        filled = [part for part in parts if part["index"]]
        if not filled:
            raise ValueError("there is no sample to evaluate")
        joined = cls(
            index=np.concatenate([np.asarray(part["index"], dtype=np.int64) for part in filled]),
            label=np.concatenate([np.asarray(part["label"], dtype=np.int64) for part in filled]),
            top=np.concatenate([np.asarray(part["top"], dtype=np.int64) for part in filled]),
            confidence=np.concatenate([np.asarray(part["confidence"], dtype=np.float64) for part in filled]),
            loss=np.concatenate([np.asarray(part["loss"], dtype=np.float64) for part in filled]),
        )
        order = np.argsort(joined.index, kind="stable")
        result = joined.select(order)
        if len(result) > 1 and not (np.diff(result.index) > 0).all():
            raise ValueError("a sample was evaluated more than once")
        return result
