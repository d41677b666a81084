"""The samples of a corpus numbered through its shards, and back. Pure numpy; knows no bytes."""

from __future__ import annotations

import numpy as np

from data_pipeline.permutation import Integers


class Numbering:
    """Numbers from 0 on, shard after shard."""

    def __init__(self, counts: Integers) -> None:
        """Take the samples of each shard."""
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts

    def numbers(self, shards: Integers, indexes: Integers) -> Integers:
        """Return the samples' numbers. Shape: shards, indexes (n,) → (n,)."""
        return self._starts[shards] + indexes

    def place(self, number: int) -> tuple[int, int]:
        """Return a sample's shard and its index there."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._starts[shard])
