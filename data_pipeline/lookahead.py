"""Announces the shards that one rank will read next, by walking ahead in the known order. Reads nothing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from data_pipeline.order import PositionOrder
from data_pipeline.record import SampleSource
from data_pipeline.steps import Steps

_MOST_STEPS = 512  # a step costs 2 ms to look up; a start must not take longer than a second

_Shard = tuple[int, int]


class Lookahead:
    """Keeps remote corpora informed of the next shards, up to `ahead_shards` beyond those in use."""

    def __init__(
        self,
        order: PositionOrder,
        corpora: Sequence[SampleSource],
        rank_steps: Steps,
        *,
        ahead_shards: int,
    ) -> None:
        """Prepare to walk."""
        self._order, self._corpora, self._rank_steps = order, corpora, rank_steps
        self._ahead = ahead_shards
        self._steps: deque[set[_Shard]] = deque()
        self._wanted: Counter[_Shard] = Counter()
        self._cursor = -1
        self._all = sum(len(corpus.counts) for corpus in corpora if corpus.remote)

    def at(self, samples_seen: int) -> None:
        """Announce what comes after the step that begins here; called once for each step, in order."""
        if self._steps:
            self._wanted.subtract(self._steps.popleft())
            self._wanted += Counter()  # drops those no longer wanted
        else:
            self._cursor = samples_seen
        in_use = len(self._steps[0]) if self._steps else 0
        while len(self._wanted) < min(in_use + self._ahead, self._all) and len(self._steps) < _MOST_STEPS:
            places = self._order.locate(self._rank_steps.positions(self._cursor))
            shards = {
                (int(corpus), int(shard))
                for corpus, shard in zip(places.corpus, places.shard, strict=True)
                if self._corpora[corpus].remote
            }
            for number, corpus in enumerate(self._corpora):
                new = sorted(shard for owner, shard in shards - set(self._wanted) if owner == number)
                if new:
                    corpus.prepare(new)
            self._wanted.update(shards)
            self._steps.append(shards)
            self._cursor = self._rank_steps.end(self._cursor)
            in_use = len(self._steps[0])
