"""Shards are announced in time and by need: so many beyond those that steps have begun to read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CacheConfig, CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.loader import TrainLoader
from data_pipeline.lookahead import Lookahead
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, Places
from data_pipeline.shard_files import LocalFiles
from data_pipeline.steps import Steps


class Source:
    """A corpus that only keeps what is announced."""

    def __init__(self, counts: list[int], *, remote: bool = True) -> None:
        self.counts, self.remote = counts, remote
        self.calls: list[list[int]] = []

    @property
    def announced(self) -> list[int]:
        return [shard for call in self.calls for shard in call]

    def prepare(self, shards: list[int]) -> None:
        self.calls.append(shards)


class FarFiles(LocalFiles):
    """A folder that is taken for a remote one, and keeps which shards are announced."""

    remote = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.announced: list[str] = []

    def prepare(self, names: list[str]) -> None:
        self.announced += [name for name in names if name.endswith(".tar")]


class CountedOrder(Order):
    """An order that keeps how often it was asked."""

    looks = 0

    def locate(self, positions: Any) -> Places:
        self.looks += 1
        return super().locate(positions)


def lookahead(order: Order | Mixture, sources: list[Source], steps: Steps, ahead_shards: int) -> Lookahead:
    return Lookahead(order, sources, steps, ahead_shards=ahead_shards)  # type: ignore[arg-type]


def shards_of(order: Order | Mixture, positions: Any, *, corpus: int = 0) -> set[int]:
    places = order.locate(positions)
    return set(places.shard[places.corpus == corpus].tolist())


@pytest.mark.parametrize("batch", [2, 8, 48])
def test_so_many_shards_are_ahead_at_any_time_however_few_of_the_open_ones_a_step_reads(batch: int) -> None:
    source = Source([20] * 96)
    order = Order(source.counts, seed=0, lanes=8, window=3)  # 24 shards are open at a time
    steps = Steps(order, batch, 0, 1)
    ahead = lookahead(order, [source], steps, 6)
    read: set[int] = set()
    for begin in range(0, min(order.samples, 300 * batch), batch):
        ahead.at(begin)
        reads = shards_of(order, steps.positions(begin))
        read |= reads
        announced = set(source.announced)
        assert reads <= announced
        assert min(6, 96 - len(read)) <= len(announced - read) < 6 + batch


def test_a_shard_that_no_step_has_read_for_long_is_ahead_again_in_the_next_epoch() -> None:
    source = Source([40] * 30)
    order = Order(source.counts, seed=0, lanes=1, window=1)  # a shard after the other
    following = order.locate(np.arange(0, 2 * order.samples, 40)).shard.tolist()
    ahead = lookahead(order, [source], Steps(order, 1, 0, 1), 3)
    for begin in range(order.samples - 200, 2 * order.samples - 160):
        ahead.at(begin)
        if begin > order.samples + 900:
            assert source.announced[-1] == following[begin // 40 + 3]


def test_each_remote_corpus_of_a_mixture_is_told_its_own_shards_and_a_local_one_nothing() -> None:
    sources = [Source([10] * 6), Source([10] * 9, remote=False), Source([10] * 12)]
    mixture = Mixture([Order(one.counts, seed=3) for one in sources], [1, 1, 1], seed=0)
    steps = Steps(mixture, 6, 0, 1)
    ahead = lookahead(mixture, sources, steps, 2)
    for begin in range(0, 60, 6):
        ahead.at(begin)
        for corpus in (0, 2):
            reads = shards_of(mixture, steps.positions(begin), corpus=corpus)
            assert reads <= set(sources[corpus].announced) <= set(range(len(sources[corpus].counts)))
    assert not sources[1].calls
    assert all(call == sorted(set(call)) != [] for one in sources for call in one.calls)


def test_a_start_looks_at_no_more_steps_than_a_second_allows_and_then_at_one_for_each() -> None:
    source = Source([100] * 5000)
    order = CountedOrder(source.counts, seed=0)
    ahead = lookahead(order, [source], Steps(order, 2, 0, 1), 10**6)
    ahead.at(0)
    assert order.looks == 512
    ahead.at(2)
    assert order.looks == 513


def test_no_further_step_is_looked_at_once_every_remote_shard_is_announced() -> None:
    source = Source([30] * 4)
    order = CountedOrder(source.counts, seed=0)
    lookahead(order, [source], Steps(order, 40, 0, 1), 8).at(0)
    assert sorted(source.announced) == [0, 1, 2, 3] and order.looks <= 3


@pytest.mark.parametrize(("ahead_shards", "announced"), [(0, 0), (1, 8)])
def test_who_wants_nothing_fetched_ahead_has_nothing_announced(
    shard_folder: Path, ahead_shards: int, announced: int
) -> None:
    files = FarFiles(shard_folder)
    data = DataConfig(train=[CorpusConfig("far")], cache=CacheConfig(ahead_shards=ahead_shards))
    corpus = Corpus(Corpus.open(shard_folder).manifest, files)
    loader = TrainLoader([corpus], data, AugmentConfig(image_size=8), seed=0, global_batch=60)
    with closing(loader.from_sample(0)) as stream:
        next(stream)
    assert len(set(files.announced)) == announced
