"""How the order's positions are cut into steps and shared by the ranks. Pure numpy; knows no bytes.

A step takes the next `global_batch` positions, sorted by (lane, position) and cut into equal slices. The
sorted list does not depend on the world size: any g consecutive entries are the same group at each world
size whose share is a multiple of g. A rank keeps to its part of the lanes, hence to its shards. With a
masked tail no step goes beyond its epoch: the last one has fewer positions, and is filled up with samples
of its own that count for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import PositionOrder
from data_pipeline.permutation import Integers


@dataclass(frozen=True)
class Steps:
    """One rank's shares of the steps, each a pure function of the position where its step begins.

    Attributes:
        global_batch: a multiple of the world size.
    """

    order: PositionOrder
    global_batch: int
    rank: int
    world_size: int
    masked: bool = False

    def __post_init__(self) -> None:
        assert self.global_batch % self.world_size == 0, (self.global_batch, self.world_size)

    @property
    def share(self) -> int:
        """Positions of one rank in a step."""
        return self.global_batch // self.world_size

    def end(self, begin: int) -> int:
        """Return where the step that begins at a position ends, and the next one begins."""
        if not self.masked:
            return begin + self.global_batch
        epoch_samples = self.order.epoch_samples
        return min(begin + self.global_batch, (begin // epoch_samples + 1) * epoch_samples)

    def positions(self, begin: int) -> Integers:
        """Return this rank's positions of a step, in the order in which they are put into batches.

        A short step's sorted positions are repeated from the first one on, before they are shared: what fills
        it does not depend on the number of ranks.

        Shape: (global_batch / world_size,).
        """
        positions = np.arange(begin, self.end(begin), dtype=np.int64)
        ranked = positions[np.lexsort((positions, self.order.lane_fractions(positions)))]
        return np.resize(ranked, self.global_batch)[self.rank * self.share : (self.rank + 1) * self.share]

    def weights(self, begin: int) -> NDArray[np.float32] | None:
        """Return the weights that make the step's mean loss that of its own samples; None for a full step.

        Shape: (global_batch / world_size,).
        """
        samples = self.end(begin) - begin
        if samples == self.global_batch:
            return None
        slots = np.arange(self.rank * self.share, (self.rank + 1) * self.share)
        return np.where(slots < samples, self.global_batch / samples, 0.0).astype(np.float32)
