"""What stands for a sample that is not used: the same whether it is excluded or damaged."""

from __future__ import annotations

import re
import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch

from coatnet.config import UserError
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_train_corpora

POSITION = 17
SUBSTITUTE = "shard-000004.tar[14] "  # the first that the position's hash names: recorded, as the order is


def loader(folder: Path, *, budget: float = 0.1) -> TrainLoader:
    data = DataConfig(train=[CorpusConfig(str(folder))], bad_sample_budget=budget)
    return TrainLoader(open_train_corpora(data), data, AugmentConfig(image_size=16), seed=5, global_batch=40)


def first(one: TrainLoader) -> Batch:
    with closing(one.from_sample(0)) as batches:
        return next(batches)


def with_a_damaged_sample(shards: Path, folder: Path, *, budget: float = 0.1) -> TrainLoader:
    """Flip a bit of the sample at POSITION in a copy."""
    damaged = Path(shutil.copytree(shards, folder))
    place = re.match(r"(shard-(\d+)\.tar)\[(\d+)\]", loader(shards).name(POSITION))
    assert place is not None
    shard = bytearray((damaged / place[1]).read_bytes())
    shard[int(Corpus.open(damaged).index(int(place[2])).samples[int(place[3])]["offset"])] ^= 1
    (damaged / place[1]).write_bytes(shard)
    return loader(damaged, budget=budget)


def test_an_excluded_sample_is_replaced_by_what_would_stand_for_it_were_it_damaged(
    shard_folder: Path, tmp_path: Path
) -> None:
    excluding = loader(shard_folder)
    plain = first(excluding)
    excluding.exclude([POSITION])
    excluded, bad = first(excluding), first(with_a_damaged_sample(shard_folder, tmp_path / "shards"))
    assert [sample.position for sample in bad.bad] == [POSITION] and not excluded.bad
    assert bad.bad[0].substitute is not None and bad.bad[0].substitute.startswith(SUBSTITUTE)
    for name in ("positions", "images", "labels", "keys"):
        assert torch.equal(getattr(excluded, name), getattr(bad, name)), name
    assert excluded.keys.ne(plain.keys).nonzero().tolist() == [[plain.positions.tolist().index(POSITION)]]


def test_what_stands_for_a_damaged_sample_is_replaced_where_its_position_is_excluded(
    shard_folder: Path, tmp_path: Path
) -> None:
    """The second substitute by the position's hash would be the sample itself, which is none."""
    damaged, twice = with_a_damaged_sample(shard_folder, tmp_path / "shards"), loader(shard_folder)
    before = first(damaged)
    damaged.exclude([POSITION])
    twice.exclude([POSITION, POSITION])
    after, other = first(damaged), first(twice)
    assert after.keys.ne(before.keys).nonzero().tolist() == [[before.positions.tolist().index(POSITION)]]
    for name in ("images", "labels", "keys"):
        assert torch.equal(getattr(after, name), getattr(other, name)), name
    assert [sample.position for sample in after.bad] == [POSITION], "it is as bad as before"
    assert after.bad[0].substitute != before.bad[0].substitute and not other.bad


def test_the_threads_of_a_stream_end_with_the_error_that_ends_it(shard_folder: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    stream = with_a_damaged_sample(shard_folder, tmp_path / "shards", budget=0.0).from_sample(0)
    with pytest.raises(UserError, match="1 bad samples among 40 read") as raised:
        next(stream)
    assert threading.active_count() == before and raised.tb is not None, "which keeps the stream's frame"


def test_of_a_mixture_samples_are_named_with_the_corpus_that_they_are_of(
    shard_folder: Path, tmp_path: Path
) -> None:
    """Shards are called alike in all of them."""
    with_a_damaged_sample(shard_folder, tmp_path / "damaged")
    train = [CorpusConfig(f"{shard_folder}/"), CorpusConfig(str(tmp_path / "damaged"))]
    data = DataConfig(train=train, bad_sample_budget=1)
    corpora = open_train_corpora(data)
    mixture = TrainLoader(corpora, data, AugmentConfig(image_size=16), seed=5, global_batch=40)
    with closing(mixture.from_sample(0)) as batches:
        bad = [sample for _ in range(6) for sample in next(batches).bad]  # an epoch
    one = bad[0]
    assert {sample.name for sample in bad} == {one.name}
    assert one.name.startswith(f"{tmp_path}/damaged/shard-") and one.name == mixture.name(one.position)
    assert one.substitute is not None and one.substitute.startswith(f"{tmp_path}/damaged/shard-")
    of = [mixture.name(position).rpartition("/shard-")[0] for position in range(240)]
    assert {*of} == {str(shard_folder), str(tmp_path / "damaged")}
