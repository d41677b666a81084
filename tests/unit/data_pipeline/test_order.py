from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import order as order_module
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, PositionOrder
from data_pipeline.steps import Steps

WORLD_SIZES = (1, 2, 3, 5, 6, 7, 8, 12, 16, 24)
SHARED_BY_ALL = 1680  # the least batch that all of these share equally

ragged = st.lists(st.integers(0, 60), min_size=1, max_size=60).filter(any)


def sample_numbers(order: Order, counts: list[int], positions: np.ndarray) -> np.ndarray:
    places = order.locate(positions)
    assert (places.index < np.asarray(counts)[places.shard]).all()
    return (np.cumsum(counts) - counts)[places.shard] + places.index


@pytest.mark.slow
@given(
    counts=ragged, seed=st.integers(0, 2**40), lanes=st.sampled_from([1, 6, 240]), window=st.integers(1, 6)
)
@settings(max_examples=80, deadline=None)
def test_each_epoch_holds_every_sample_once_for_ragged_shards(
    counts: list[int], seed: int, lanes: int, window: int
) -> None:
    order = Order(counts, seed=seed, lanes=lanes, window=window)
    for epoch in (0, 1, 7):
        positions = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
        assert sorted(sample_numbers(order, counts, positions).tolist()) == list(range(order.samples))
        assert (order.locate(positions).epoch == epoch).all()


@given(counts=ragged, seed=st.integers(0, 2**40), start=st.integers(0, 10**7))
@settings(max_examples=60, deadline=None)
def test_every_world_size_reads_the_same_samples_in_each_step(
    counts: list[int], seed: int, start: int
) -> None:
    order = Order(counts, seed=seed)
    whole = Steps(order, SHARED_BY_ALL, 0, 1).positions(start)
    assert sorted(whole.tolist()) == list(range(start, start + SHARED_BY_ALL))
    for world_size in WORLD_SIZES:
        shares = [
            Steps(order, SHARED_BY_ALL, rank, world_size).positions(start) for rank in range(world_size)
        ]
        assert {len(share) for share in shares} == {SHARED_BY_ALL // world_size}
        assert np.array_equal(np.concatenate(shares), whole)


@given(counts=ragged, begin=st.integers(0, 5000), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_position_lies_where_it_lies_however_it_is_asked_for(
    counts: list[int], begin: int, sizes: list[int]
) -> None:
    order = Order(counts, seed=3)
    whole = sample_numbers(order, counts, np.arange(begin, begin + sum(sizes)))
    edges = begin + np.cumsum([0, *sizes])
    pieces = [sample_numbers(Order(counts, seed=3), counts, np.arange(a, b)) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_epochs_seeds_and_corpora_of_one_shard_are_permuted_differently() -> None:
    counts = [200]
    order = Order(counts, seed=0)
    epochs = [sample_numbers(order, counts, np.arange(200 * e, 200 * (e + 1))).tolist() for e in range(3)]
    other = sample_numbers(Order(counts, seed=1), counts, np.arange(200)).tolist()
    assert len({tuple(order) for order in [*epochs, other, list(range(200))]}) == 5
    for order_ in epochs:  # neighbours in the corpus are no neighbours in the order
        assert np.mean(np.abs(np.diff(order_)) == 1) < 0.05


def test_a_rank_keeps_to_its_part_of_the_shards() -> None:
    counts = [100] * 960
    order = Order(counts, seed=0)
    assert order.lanes == 240
    seen = [set(), set()]
    for step in range(10):
        for rank in (0, 1):
            share = Steps(order, 480, rank, 2).positions(step * 480)
            seen[rank].update(order.locate(share).shard.tolist())
    shared = seen[0] & seen[1]
    assert len(shared) <= 8  # at the border between two lanes a shard belongs to both


def test_windows_of_different_lanes_end_at_different_times() -> None:
    counts = [50] * 2400
    order = Order(counts, seed=0, lanes=24, window=4)
    fresh, seen = [], set()
    for step in range(80):
        shards = set(order.locate(np.arange(step * 240, (step + 1) * 240)).shard.tolist())
        fresh.append(len(shards - seen))
        seen |= shards
    # 24 lanes of 4 new shards each every 20 steps: all at once would be 96
    assert max(fresh[20:]) < 40


def test_a_dropped_tail_leaves_out_other_samples_each_epoch() -> None:
    counts = [30, 40, 33]
    order = Order(counts, seed=0, epoch_samples=96)
    left_out = []
    for epoch in range(4):
        numbers = sample_numbers(order, counts, np.arange(96 * epoch, 96 * (epoch + 1)))
        assert len(set(numbers.tolist())) == 96
        left_out.append(frozenset(range(103)) - frozenset(numbers.tolist()))
    assert len(set(left_out)) == 4


def test_the_order_of_300_million_samples_is_known_at_once_and_costs_little_memory() -> None:
    counts = np.random.default_rng(0).integers(8000, 10_000, 33_000)
    tracemalloc.start()
    began = time.thread_time()
    order = Order(counts, seed=1)
    order.locate(Steps(order, 4096, 3, 16).positions(123_456_789))
    seconds = time.thread_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order.samples > 290_000_000
    assert seconds < 1.0  # 0.02 s
    assert peak < 10_000_000


def test_an_epochs_shards_are_put_in_order_once_and_those_of_former_epochs_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step at an epoch's end needs two of them; 33,000 shards are 0.5 MB an epoch."""
    shuffles: list[int] = []
    shuffled = order_module.shuffled
    monkeypatch.setattr(order_module, "shuffled", lambda *args: shuffles.append(1) or shuffled(*args))
    order = Order([2] * 1000, seed=0)
    tracemalloc.start()
    for begin in range(0, 20 * order.samples, 800):
        order.locate(np.arange(begin, begin + 800, 100))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(shuffles) == 20
    assert kept < 10 * 16 * 1000


def test_a_mixture_holds_exact_quotas_in_every_block() -> None:
    orders = [Order([100] * 20, seed=1), Order([30] * 5, seed=2), Order([7], seed=3)]
    mixture = Mixture(orders, [0.7, 0.25, 0.05], seed=4)
    assert mixture.quotas.tolist() == [700, 250, 50]
    for block in range(5):
        corpus = mixture.locate(np.arange(1000 * block, 1000 * (block + 1))).corpus
        assert np.bincount(corpus).tolist() == [700, 250, 50]


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=5), start=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_each_corpus_of_a_mixture_goes_through_its_own_order(weights: list[int], start: int) -> None:
    orders = [Order([10 + number] * 3, seed=number) for number in range(len(weights))]
    mixture = Mixture(orders, weights, seed=9)
    block = int(mixture.quotas.sum())
    positions = np.arange(block * (start // block), block * (start // block) + 2 * block)
    places = mixture.locate(positions)
    for number, order in enumerate(orders):
        mine = places.corpus == number
        quota = int(mixture.quotas[number])
        own = np.arange(start // block * quota, (start // block + 2) * quota)
        expected = order.locate(own)
        got = sorted(zip(places.epoch[mine], places.shard[mine], places.index[mine], strict=True))
        assert got == sorted(zip(expected.epoch, expected.shard, expected.index, strict=True))


def test_lanes_of_corpora_compare_by_where_they_are_however_many_a_corpus_has() -> None:
    orders = [Order([100] * 40, seed=1), Order([30] * 5, seed=2)]
    assert [order.lanes for order in orders] == [10, 1]
    tenths = [number * 2**32 // 10 for number in range(10)]
    assert orders[0].lane_fractions(np.arange(20)).tolist() == tenths * 2
    assert orders[1].lane_fractions(np.arange(20)).tolist() == [0] * 20
    mixture = Mixture(orders, [1, 1], seed=4)
    assert sorted(set(mixture.lane_fractions(np.arange(1000)).tolist())) == tenths


def test_a_mixture_is_shared_equally_too() -> None:
    orders: list[Order] = [Order([100] * 20, seed=1), Order([30] * 5, seed=2)]
    mixture: PositionOrder = Mixture(orders, [1, 1], seed=4)
    whole = Steps(mixture, SHARED_BY_ALL, 0, 1).positions(777)
    for world_size in WORLD_SIZES:
        shares = [
            Steps(mixture, SHARED_BY_ALL, rank, world_size).positions(777) for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(shares), whole)


def test_weights_that_fit_no_block_are_rounded_and_a_corpus_that_never_comes_is_refused() -> None:
    orders = [Order([10], seed=number) for number in range(3)]
    assert Mixture(orders, [0.123451, 0.123459, 0.75309], seed=0).quotas.tolist() == [1234, 1235, 7531]
    assert Mixture(orders, [0.123541, 0.123461, 0.752998], seed=0).quotas.tolist() == [1235, 1235, 7530]
    with pytest.raises(ValueError, match="would never come"):
        Mixture(orders, [1.0, 1.0, 0.0000001], seed=0)


def test_what_is_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Order([0, 0], seed=0)
    for epoch_samples in (0, 11):
        with pytest.raises(ValueError, match="allowed: 1 to 10"):
            Order([10], seed=0, epoch_samples=epoch_samples)
    assert [Order([10], seed=0, epoch_samples=allowed).epoch_samples for allowed in (1, 10)] == [1, 10]
