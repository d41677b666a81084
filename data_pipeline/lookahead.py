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
    """Keeps remote corpora informed of the next shards, up to `ahead_shards` beyond those in use.

    In use is what a step has read lately: one of few samples reads but a few of the shards that are open, and
    the others would count as those ahead of it.
    """

    def __init__(
        self, order: PositionOrder, corpora: Sequence[SampleSource], rank_steps: Steps, *, ahead_shards: int
    ) -> None:
        """Prepare to walk."""
        self._order, self._corpora, self._rank_steps = order, corpora, rank_steps
        self._ahead = ahead_shards
        self._steps: deque[set[_Shard]] = deque()
        self._wanted: Counter[_Shard] = Counter()
        self._last_turns: dict[_Shard, int] = {}  # of those in use
        self._turn = 0
        self._cursor = -1
        self._all = sum(len(corpus.counts) for corpus in corpora if corpus.remote)

    def at(self, samples_seen: int) -> None:
        """Announce what comes after the step that begins here; called once for each step, in order."""
        if self._steps:
            self._wanted.subtract(self._steps.popleft())
            self._wanted += Counter()  # drops those no longer wanted
        if not self._steps:
            self._cursor = samples_seen
            self._walk()
        self._begin()
        while self._is_short():
            self._walk()

    def _begin(self) -> None:
        """Take the first step's shards into use, and those out of it that no step has read for long."""
        self._turn += 1
        turns = self._last_turns | dict.fromkeys(self._steps[0], self._turn)
        self._last_turns = {shard: turn for shard, turn in turns.items() if turn > self._turn - _MOST_STEPS}

    def _is_short(self) -> bool:
        ahead = self._wanted.keys() - self._last_turns.keys()
        more = len(self._wanted) < self._all and len(self._steps) < _MOST_STEPS
        return more and len(ahead) < self._ahead

    def _walk(self) -> None:
        """Look one step further, and announce what is new in it."""
        places = self._order.locate(self._rank_steps.positions(self._cursor))
        shards = {
            (int(corpus), int(shard))
            for corpus, shard in zip(places.corpus, places.shard, strict=True)
            if self._corpora[corpus].remote
        }
        for number, corpus in enumerate(self._corpora):
            new = sorted(shard for owner, shard in shards - self._wanted.keys() if owner == number)
            if new:
                corpus.prepare(new)
        self._wanted.update(shards)
        self._steps.append(shards)
        self._cursor = self._rank_steps.end(self._cursor)
