"""How many bad samples are too many. Knows no reader."""

from __future__ import annotations

import threading

from coatnet.config import UserError
from data_pipeline.batch import BadSample


class BadSampleBudget:
    """Counts bad samples against a share of those read; safe to share by threads."""

    def __init__(self, share: float, *, expected: float) -> None:
        """Accept one bad sample, or a share of the samples expected or read so far, whichever is most."""
        self._share = share
        self._expected = expected
        self._read = 0
        self._bad = 0
        self._first: BadSample | None = None
        self._lock = threading.Lock()

    def count(self, *, read: int, bad: list[BadSample]) -> None:
        """Count a batch.

        Raises:
            UserError: more bad samples than the budget allows.
        """
        with self._lock:
            self._read += read
            self._bad += len(bad)
            self._first = self._first or next(iter(bad), None)
            allowed = self._share * max(self._read, self._expected)
            if self._first is None or self._bad <= (max(1.0, allowed) if self._share > 0 else 0.0):
                return
            raise UserError(
                f"{self._bad} bad samples among {self._read} read, more than data.bad_sample_budget="
                f"{self._share:g} allows; the first: {self._first.name}: {self._first.reason}. "
                "`coatnet inspect shards DIR --verify --lint` names all of them"
            )
