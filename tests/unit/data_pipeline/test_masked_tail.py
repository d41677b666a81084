"""The last step of an epoch, filled up: every sample counts once, what fills counts for nothing, anywhere."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coatnet.config import UserError
from coatnet.training.losses import make_loss
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_corpus, open_train_corpora
from data_pipeline.order import Order
from data_pipeline.record import BadSampleError, Record
from data_pipeline.steps import Steps

AUGMENT = AugmentConfig(image_size=16)
BATCH = 48  # the corpus of 120 leaves a tail of 24
WORLD_SIZES = (1, 2, 3, 4, 6, 8, 12, 24)


def loader(folder: Path, *, rank: int = 0, world_size: int = 1, tail: str = "mask") -> TrainLoader:
    data = DataConfig(train=[CorpusConfig(str(folder))], tail=tail, threads=1)
    return TrainLoader(
        open_train_corpora(data), data, AUGMENT, seed=5, global_batch=BATCH, rank=rank, world_size=world_size
    )


def batches(folder: Path, *, count: int, start: int = 0, **options: object) -> list[Batch]:
    with closing(loader(folder, **options).from_sample(start)) as stream:  # type: ignore[arg-type]
        return [next(stream) for _ in range(count)]


@pytest.mark.slow
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    shares=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_seen_exactly_once_and_filled_by_its_own_last_step(
    counts: list[int], shares: int, seed: int
) -> None:
    batch, order = 24 * shares, Order(counts, seed=seed)
    for world_size in WORLD_SIZES:
        ranks = [Steps(order, batch, rank, world_size, masked=True) for rank in range(world_size)]
        seen: list[int] = []
        begin = 0
        while begin < 2 * order.samples:
            end = ranks[0].end(begin)
            positions = np.concatenate([one.positions(begin) for one in ranks])
            given = [one.weights(begin) for one in ranks]
            assert len(positions) == batch and set(positions) == set(range(begin, end))
            if end - begin == batch:
                assert given == [None] * world_size
                seen += positions.tolist()
            else:
                weights = np.concatenate(given)
                seen += positions[weights > 0].tolist()
                losses = np.random.default_rng(begin).random(batch)
                weighted = np.mean([part.mean() for part in np.split(losses * weights, world_size)])
                np.testing.assert_allclose(weighted, losses[weights > 0].mean(), rtol=1e-6)
            begin = end
        assert begin == 2 * order.samples
        assert sorted(seen) == list(range(begin))


def test_the_loss_of_a_filled_step_is_the_mean_over_its_own_samples() -> None:
    logits, targets = torch.randn(8, 5), torch.randint(5, (8,))
    weights = torch.tensor([8 / 3] * 3 + [0.0] * 5)
    for name in ("softmax", "sigmoid"):
        loss = make_loss(name, 0.1)
        torch.testing.assert_close(loss(logits, targets, weights), loss(logits[:3], targets[:3]))
        assert torch.equal(loss(logits, targets, None), loss(logits, targets))


def test_whole_steps_are_those_of_any_other_tail_to_the_bit(shard_folder: Path) -> None:
    masked = batches(shard_folder, count=2)
    for tail in ("continue", "drop"):
        for one, other in zip(masked, batches(shard_folder, count=2, tail=tail), strict=True):
            assert one.tail is other.tail is None
            assert torch.equal(one.images, other.images) and torch.equal(one.keys, other.keys)


def test_what_fills_a_step_are_its_own_samples_as_they_are_at_every_world_size(shard_folder: Path) -> None:
    (alone,) = batches(shard_folder, start=96, count=1)
    assert alone.tail is not None and alone.step_samples(1) == 24
    assert sorted(alone.seen.tolist()) == list(range(96, 120))
    assert torch.equal(alone.images[:24], alone.images[24:])
    assert torch.equal(alone.positions[:24], alone.positions[24:])
    for world_size in (2, 3, 8):
        shares = [
            batches(shard_folder, start=96, count=1, rank=rank, world_size=world_size)[0]
            for rank in range(world_size)
        ]
        assert {share.step_samples(world_size) for share in shares} == {24}
        for name in ("images", "labels", "positions", "keys"):
            together = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(together, getattr(alone, name))
        weights = torch.cat([share.tail.weights for share in shares if share.tail is not None])
        assert torch.equal(weights, alone.tail.weights)


def test_a_resume_in_the_tail_and_behind_it_goes_on_as_if_nothing_had_happened(shard_folder: Path) -> None:
    unbroken = batches(shard_folder, count=7)
    starts = [0, 48, 96, 120, 168, 216, 240]
    for start, expected in zip(starts, unbroken, strict=True):
        (found,) = batches(shard_folder, start=start, count=1)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.positions, expected.positions)
        assert found.step_samples(1) == expected.step_samples(1)


class _OneBad:
    """A corpus with a sample that cannot be read."""

    def __init__(self, folder: Path, bad: tuple[int, int]) -> None:
        self._corpus, self._bad = open_corpus(folder), bad
        self.classes, self.label_kind = self._corpus.classes, self._corpus.label_kind
        self.digest, self.remote = self._corpus.digest, False
        self.counts, self.samples = self._corpus.counts, self._corpus.samples

    def read(self, shard: int, index: int) -> Record:
        if (shard, index) == self._bad:
            raise BadSampleError("gone")
        return self._corpus.read(shard, index)

    def name(self, shard: int, index: int) -> str:
        return f"{shard}[{index}]"

    def prepare(self, shards: list[int]) -> None:
        pass


@pytest.mark.parametrize("batch", [BATCH, 32], ids=["one that also fills", "one that does not"])
def test_a_bad_sample_in_the_tail_is_named_once(shard_folder: Path, batch: int) -> None:
    position = 101  # in the tail, behind the eight that fill a batch of 32
    data = DataConfig(train=[CorpusConfig("x")], tail="mask", bad_sample_budget=0.1)
    probe = TrainLoader([open_corpus(shard_folder)], data, AUGMENT, seed=5, global_batch=batch)
    places = probe._order.locate(np.array([position]))
    corpus = _OneBad(shard_folder, (int(places.shard[0]), int(places.index[0])))
    for world_size in (1, 2):
        named = []
        for rank in range(world_size):
            one = TrainLoader(
                [corpus], data, AUGMENT, seed=5, global_batch=batch, rank=rank, world_size=world_size
            )
            with closing(one.from_sample(96)) as stream:
                named += next(stream).bad
        assert [sample.position for sample in named] == [position]


def test_a_corpus_smaller_than_a_batch_is_one_filled_step_an_epoch(shard_folder: Path) -> None:
    data = DataConfig(train=[CorpusConfig(str(shard_folder))], tail="mask")
    large = TrainLoader(open_train_corpora(data), data, AUGMENT, seed=5, global_batch=336)
    with closing(large.from_sample(0)) as stream:
        first, second = next(stream), next(stream)
    assert first.step_samples(1) == second.step_samples(1) == 120
    assert sorted(second.seen.tolist()) == list(range(120, 240))


def test_a_tail_is_part_of_the_order_and_of_one_corpus(shard_folder: Path) -> None:
    state = json.loads(json.dumps(loader(shard_folder).state()))
    with pytest.raises(UserError, match="window or tail"):
        loader(shard_folder, tail="continue").restore(state)
    data = DataConfig(train=[CorpusConfig(str(shard_folder))] * 2, tail="mask")
    with pytest.raises(UserError, match="'mask' with several corpora; allowed there: continue"):
        TrainLoader(open_train_corpora(data), data, AUGMENT, seed=5, global_batch=BATCH)
