"""The order of one corpus' samples: from a position to (epoch, shard, index), without any state.

The shards in keyed order make a line of samples; the line is cut into lanes; position g of an epoch is lane
g mod lanes; inside a lane the samples of a few neighbouring shards (a window) are permuted. Hence a batch
holds samples from all over the corpus, and yet few shards are open at a time. Pure numpy; knows no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np

from data_pipeline.permutation import Integers, derive_key, derive_keys, permute, shuffled

_SHARDS, _WINDOWS = 1, 2  # purposes of a key
_FRACTION_BITS = 32
_KEPT_LINES = 2  # a step touches at most the end of one epoch and the beginning of the next


@dataclass(frozen=True)
class Places:
    """Where the samples at some positions lie. Shape: every array (n,)."""

    corpus: Integers
    epoch: Integers
    shard: Integers
    index: Integers


class _Line(NamedTuple):
    """An epoch's shards in their order, and where each begins on the line."""

    shards: Integers
    starts: Integers


class PositionOrder(Protocol):
    """What a step needs: how positions sort, and where their samples lie. `Order` and `Mixture` are such."""

    epoch_samples: int

    def lane_fractions(self, positions: Integers) -> Integers: ...

    def locate(self, positions: Integers) -> Places: ...


class Order:
    """The endless order of one corpus, epoch after epoch, each permuted anew.

    Every sample comes exactly once an epoch, whatever the shards' sizes. The number of lanes falls, by its
    divisors, until every lane has a window's worth of shards: a corpus of one shard is permuted as a whole.
    It depends on the corpus and the config, never on the world size.

    Attributes:
        samples: in the corpus.
        epoch_samples: positions in an epoch; fewer than `samples` when a tail is dropped.
        lanes: in use.
    """

    def __init__(
        self,
        counts: Sequence[int] | Integers,
        *,
        seed: int,
        lanes: int = 240,
        window: int = 4,
        epoch_samples: int | None = None,
    ) -> None:
        """Prepare the order.

        Args:
            counts: samples of each shard.
            epoch_samples: end an epoch after so many; the rest of it, other samples each time, is left out.

        Raises:
            ValueError: no samples at all, or an epoch that is empty or longer than the corpus.
        """
        self._counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self._counts.sum())
        if self.samples == 0:
            raise ValueError("the corpus holds no samples")
        self.epoch_samples = self.samples if epoch_samples is None else epoch_samples
        if not 1 <= self.epoch_samples <= self.samples:
            raise ValueError(f"an epoch of {self.epoch_samples} samples; allowed: 1 to {self.samples}")
        shards = int(np.count_nonzero(self._counts))
        self.lanes = max(
            n for n in range(1, lanes + 1) if lanes % n == 0 and (n == 1 or n * window <= shards)
        )
        self._window_key = derive_key(seed, _WINDOWS)
        # The windows of a lane share its samples evenly: a rest of a few samples would not be shuffled.
        lane_samples = self.samples // self.lanes
        self._windows = max(1, round(lane_samples / (window * self.samples / shards)))
        self._line = lru_cache(_KEPT_LINES)(partial(_line, self._counts, derive_key(seed, _SHARDS)))

    def lane_fractions(self, positions: Integers) -> Integers:
        """Return where in the row of lanes each position lies, in units of 2**-32 of it."""
        lanes = np.asarray(positions, dtype=np.int64) % self.epoch_samples % self.lanes
        return (lanes << _FRACTION_BITS) // self.lanes

    def locate(self, positions: Integers) -> Places:
        """Find the samples at some positions.

        Shape: positions (n,) → four arrays (n,).
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(positions, self.epoch_samples)
        lane, row = within % self.lanes, within // self.lanes
        short, longer = divmod(self.samples, self.lanes)
        size = short + (lane < longer)
        begin = lane * short + np.minimum(lane, longer)
        window, first, width = self._window(row, lane, size)
        keys = derive_keys(self._window_key, (epochs * self.lanes + lane) * (self._windows + 1) + window)
        on_line = begin + first + permute(row - first, width, keys)
        shard, index = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            line = self._line(int(epoch))
            slot = np.searchsorted(line.starts, on_line[chosen], side="right") - 1
            shard[chosen] = line.shards[slot]
            index[chosen] = on_line[chosen] - line.starts[slot]
        return Places(np.zeros_like(positions), epochs, shard, index)

    def _window(self, row: Integers, lane: Integers, size: Integers) -> tuple[Integers, Integers, Integers]:
        """Return each row's window in its lane, where it begins and how long it is.

        The windows of different lanes end at different times: otherwise all lanes would need new shards at
        once, and a network would idle and burst in turn.
        """
        shift = lane * size // (self.lanes * self._windows) if self._windows > 1 else np.zeros_like(row)
        window = ((row + shift + 1) * self._windows - 1) // size
        first = np.maximum(window * size // self._windows - shift, 0)
        end = np.minimum((window + 1) * size // self._windows - shift, size)
        return window, first, end - first


def _line(counts: Integers, key: int, epoch: int) -> _Line:
    shards = shuffled(len(counts), derive_key(key, epoch))
    return _Line(shards, np.cumsum(counts[shards]) - counts[shards])
