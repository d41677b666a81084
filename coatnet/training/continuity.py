"""After a resume: does the first step see the loss that an earlier life recorded for the same samples?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

# Equal to the bit at one world size; another one adds up in another order. On a CPU up to 1.1e-7 was seen
# between 1 and 2 ranks and micro-batches of 4, 12 and 24, in bf16 no more than in fp32: no kernel there
# follows the size.
_TOLERANCE = 1e-4
# A GPU's products choose theirs by the micro-batch's size, and each result is rounded to 8 bits.
_TOLERANCE_OF_BF16_ON_GPU = 2.0**-8


class LossContinuity:
    """Compares the first step after a resume for which a record exists, once."""

    def __init__(self, *, precision: str, device_type: str) -> None:
        rounded = precision != "fp32" and device_type != "cpu"
        self._tolerance = _TOLERANCE_OF_BF16_ON_GPU if rounded else _TOLERANCE
        self._recorded: dict[int, float] = {}

    def remember(self, ahead: Iterable[Mapping[str, Any]], *, until: float = math.inf) -> None:
        """Take the losses that earlier lives recorded beyond the position where this one begins.

        Those beyond `until` count no more: they may be of samples that a rollback has left out since then.
        """
        self._recorded = {
            int(row["samples_seen"]): float(row["train/loss"])
            for row in ahead
            if "train/loss" in row and int(row["samples_seen"]) <= until
        }

    def compare(self, *, samples_seen: int, loss: float) -> dict[str, Any] | None:
        """Return the verdict's fields at the first recorded position, else None."""
        recorded = self._recorded.get(samples_seen)
        if recorded is None:
            return None
        self._recorded = {}
        difference = abs(loss - recorded) / max(abs(recorded), 1e-12)
        return {
            "samples_seen": samples_seen,
            "loss": loss,
            "recorded": recorded,
            "relative_difference": difference,
            "tolerance": self._tolerance,
            "continuous": difference <= self._tolerance,  # not so where either is not finite
        }
