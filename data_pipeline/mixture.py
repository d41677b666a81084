"""Several corpora as one order, by exact quotas in permuted blocks. Pure numpy; knows no bytes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from data_pipeline.order import Order, Places
from data_pipeline.permutation import Integers, derive_key, derive_keys, permute

_BLOCKS = 3  # a key's purpose; 1 and 2 are the orders' own
_LEAST_BLOCK, _GREATEST_BLOCK = 1000, 10_000


class Mixture:
    """Corpora mixed by weight: every block of positions holds an exact quota of each, in permuted places.

    Weights are taken as the decimal numbers that they are written as, so that 0.7 and 0.3 give exactly 700
    and 300 of 1000; where no block of up to 10,000 fits exactly, quotas are rounded to the nearest.

    Attributes:
        epoch_samples: the sum over the corpora, each of which has epochs of its own.
        quotas: samples of each corpus in a block.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], *, seed: int) -> None:
        """Prepare the mixture.

        Raises:
            ValueError: a weight so small that its corpus would never come.
        """
        assert len(orders) == len(weights) and orders, "one weight per corpus"
        self._orders = list(orders)
        self.epoch_samples = sum(order.epoch_samples for order in orders)
        self.quotas = _quotas(weights)
        self._ends = np.cumsum(self.quotas)
        self._block = int(self._ends[-1])
        self._key = derive_key(seed, _BLOCKS)

    def lane_fractions(self, positions: Integers) -> Integers:
        """Return where in the row of its corpus' lanes each position lies, in units of 2**-32 of it."""
        corpus, own = self._split(positions)
        fractions = np.empty_like(own)
        for number, order in enumerate(self._orders):
            chosen = corpus == number
            fractions[chosen] = order.lane_fractions(own[chosen])
        return fractions

    def locate(self, positions: Integers) -> Places:
        """Find the samples at some positions.

        Shape: positions (n,) → four arrays (n,).
        """
        corpus, own = self._split(positions)
        places = Places(corpus, np.empty_like(own), np.empty_like(own), np.empty_like(own))
        for number, order in enumerate(self._orders):
            chosen = corpus == number
            found = order.locate(own[chosen])
            places.epoch[chosen] = found.epoch
            places.shard[chosen] = found.shard
            places.index[chosen] = found.index
        return places

    def _split(self, positions: Integers) -> tuple[Integers, Integers]:
        """Return each position's corpus, and its position in that corpus' own order."""
        block, within = np.divmod(np.asarray(positions, dtype=np.int64), self._block)
        slot = permute(within, np.full_like(within, self._block), derive_keys(self._key, block))
        corpus = np.searchsorted(self._ends, slot, side="right").astype(np.int64)
        return corpus, block * self.quotas[corpus] + slot - (self._ends - self.quotas)[corpus]


def _quotas(weights: Sequence[float]) -> Integers:
    shares = [Fraction(str(weight)) for weight in weights]
    total = sum(shares, Fraction())
    shares = [share / total for share in shares]
    exact = lcm(*(share.denominator for share in shares))
    if exact <= _GREATEST_BLOCK:
        block = exact * -(-_LEAST_BLOCK // exact)
        return np.array([int(share * block) for share in shares], dtype=np.int64)
    parts = [share * _GREATEST_BLOCK for share in shares]
    quotas = np.array([int(part) for part in parts], dtype=np.int64)
    by_rest = sorted(range(len(parts)), key=lambda number: parts[number] % 1, reverse=True)
    quotas[by_rest[: _GREATEST_BLOCK - int(quotas.sum())]] += 1
    if not quotas.all():
        least = weights[int(quotas.argmin())]
        raise ValueError(f"weight {least} is below 1/{_GREATEST_BLOCK} of all: its corpus would never come")
    return quotas
