from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from coatnet.config import UserError
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_corpus, open_train_corpora
from data_pipeline.record import BadSampleError, Record
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

AUGMENT = AugmentConfig(image_size=16)
BATCH = 336  # shared equally by 24, 16, 48 and 7 ranks


def loader(folder: Path, *, rank: int = 0, world_size: int = 1, batch: int = BATCH, **data) -> TrainLoader:
    config = DataConfig(**{"train": [CorpusConfig(str(folder))], **data})
    return TrainLoader(
        open_train_corpora(config),
        config,
        AUGMENT,
        seed=5,
        global_batch=batch,
        rank=rank,
        world_size=world_size,
    )


def digest(batches: list[Batch]) -> dict[int, str]:
    """Return position → hash of (label, key, pixels)."""
    return {
        int(position): hashlib.md5(
            bytes(image.numpy())
            + int(label).to_bytes(4, "little")
            + int(key).to_bytes(8, "little", signed=True)
        ).hexdigest()
        for batch in batches
        for position, image, label, key in zip(
            batch.positions, batch.images, batch.labels, batch.keys, strict=True
        )
    }


def stretch(
    folder: Path,
    *,
    start: int,
    steps: int,
    world_size: int,
    threads: int = 1,
    batch: int = BATCH,
    state: str = "",
) -> dict[int, str]:
    """Run all ranks of a world for some steps, as after a restart from a saved state."""
    found: dict[int, str] = {}
    for rank in range(world_size):
        restarted = loader(folder, rank=rank, world_size=world_size, threads=threads, batch=batch)
        if state:
            restarted.restore(json.loads(state))
        with closing(restarted.from_sample(start)) as stream:
            found |= digest([next(stream) for _ in range(steps)])
        assert not state or json.dumps(restarted.state()) == state, "the same on every rank"
    return found


def test_the_chain_of_24_16_48_and_7_ranks_equals_the_unbroken_stream_to_the_pixel(
    shard_folder: Path,
) -> None:
    first = loader(shard_folder)
    first.exclude([3, 400, 401, 1200])
    state = json.dumps(first.state())
    unbroken = stretch(shard_folder, start=0, steps=4, world_size=1, state=state)
    chain: dict[int, str] = {}
    for step, world_size in enumerate((24, 16, 48, 7)):
        chain |= stretch(shard_folder, start=step * BATCH, steps=1, world_size=world_size, state=state)
    assert sorted(unbroken) == list(range(4 * BATCH))
    assert chain == unbroken


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(shard_folder: Path, threads: int) -> None:
    one = stretch(shard_folder, start=100, steps=2, world_size=1, threads=1)
    assert stretch(shard_folder, start=100, steps=2, world_size=1, threads=threads) == one


@pytest.mark.slow
def test_every_world_size_and_number_of_threads_sees_the_same_pixels_in_a_step(shard_folder: Path) -> None:
    batch = 1680  # shared equally by all of them
    alone = stretch(shard_folder, start=5 * batch, steps=1, world_size=1, batch=batch)
    sizes = (1, 2, 3, 5, 6, 7, 8, 12, 16, 24)
    for number, world_size in enumerate(sizes):
        threads = (2, 4, 1)[number % 3]
        found = stretch(
            shard_folder, start=5 * batch, steps=1, world_size=world_size, threads=threads, batch=batch
        )
        assert found == alone, f"{world_size} ranks of {threads} threads"


def test_a_fixed_group_of_consecutive_images_is_the_same_at_every_world_size(shard_folder: Path) -> None:
    def groups(world_size: int) -> list[tuple[int, ...]]:
        found = []
        for rank in range(world_size):
            with closing(loader(shard_folder, rank=rank, world_size=world_size).from_sample(0)) as stream:
                positions = next(stream).positions.tolist()
            found += [tuple(positions[i : i + 14]) for i in range(0, len(positions), 14)]
        return found

    assert groups(1) == groups(2) == groups(4) == groups(24)


def test_a_sample_looks_different_in_the_next_epoch(shard_folder: Path) -> None:
    with closing(loader(shard_folder, batch=120).from_sample(0)) as stream:
        first, second = next(stream), next(stream)
    assert set(first.keys.tolist()).isdisjoint(second.keys.tolist())


def test_labels_are_the_folders(image_folder: Path, shard_folder: Path) -> None:
    sharded, direct = open_corpus(shard_folder), open_corpus(image_folder)
    assert sharded.classes == direct.classes == ["ant", "bee", "cat"]
    by_bytes = {direct.read(0, i).payload: direct.read(0, i).label for i in range(direct.samples)}
    for shard, count in enumerate(sharded.counts):
        for index in range(count):
            record = sharded.read(shard, index)
            assert by_bytes.pop(record.payload) == record.label
    assert not by_bytes


def test_an_image_folder_streams_without_sharding(image_folder: Path) -> None:
    with closing(loader(image_folder, batch=60).from_sample(0)) as stream:
        batches = [next(stream) for _ in range(2)]
    assert len(digest(batches)) == 120
    assert np.bincount(np.concatenate([batch.labels for batch in batches])).tolist() == [40, 40, 40]


def test_a_link_that_leads_to_no_file_is_named_when_it_is_read_or_sharded(
    image_folder: Path, tmp_path: Path
) -> None:
    for name in ("ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            source = image_folder / name / f"{number:03d}.jpg"
            (tmp_path / "images" / name / source.name).symlink_to(source)
    (tmp_path / "images" / "ant" / "lost.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "images" / "ant" / "more").symlink_to(tmp_path / "images" / "bee")
    loader = EvaluateLoader(open_corpus(tmp_path / "images"), AUGMENT, batch=8)
    assert [sample.name for batch in loader for sample in batch.bad] == ["ant/lost.jpg", "ant/more"]
    options = ShardOptions(bad_budget=0.5)
    made = shard_corpus(tmp_path / "images", tmp_path / "shards", options=options, quiet=True)["all"]
    assert (made.counts["written"], made.counts["skipped"]) == (6, 2)
    assert "lost.jpg" in (tmp_path / "shards" / "report.jsonl").read_text()


def test_the_state_is_small_and_resumes_exclusions(shard_folder: Path) -> None:
    first = loader(shard_folder)
    first.exclude([*range(10, 40), 400, 41])
    state = json.loads(json.dumps(first.state()))
    assert len(json.dumps(state)) < 400 and state["excluded"] == [[10, 40], [41, 42], [400, 401]]
    second = loader(shard_folder, world_size=2, rank=1)
    second.restore(state)
    assert second.state() == first.state()


def test_a_state_of_another_order_is_refused(shard_folder: Path, image_folder: Path) -> None:
    state = loader(shard_folder).state()
    with pytest.raises(UserError, match=r"data\.train: the checkpoint has"):
        loader(image_folder).restore(state)
    with pytest.raises(UserError, match=r"data\.lanes, window or tail"):
        loader(shard_folder, window=2).restore(state)
    with pytest.raises(
        UserError, match=r"data\.train: the checkpoint has .*, 1\.0\]\], this run .*, 2\.0\]\]"
    ):
        loader(shard_folder, train=[CorpusConfig(str(shard_folder), weight=2.0)]).restore(state)
    with pytest.raises(UserError, match="version of the order: the checkpoint has 0, this run 1"):
        loader(shard_folder).restore({**state, "version": 0})


def test_another_global_batch_is_refused_where_it_drops_another_tail(shard_folder: Path) -> None:
    state = json.loads(json.dumps(loader(shard_folder, batch=50, tail="drop").state()))
    loader(shard_folder, batch=25, world_size=5, tail="drop").restore(state)
    with pytest.raises(UserError, match=r"^train\.global_batch: .* has 100 samples, one of this run 120:"):
        loader(shard_folder, batch=40, tail="drop").restore(state)
    del state["epoch_samples"]  # as it was written before
    loader(shard_folder, batch=50, tail="drop").restore(state)
    loader(shard_folder, batch=40).restore(loader(shard_folder, batch=50).state())


def test_excluded_positions_are_replaced_at_any_world_size_alike_and_not_counted(shard_folder: Path) -> None:
    def run(world_size: int, excluded: list[int]) -> tuple[dict[int, str], int]:
        found, bad = {}, 0
        for rank in range(world_size):
            one = loader(shard_folder, rank=rank, world_size=world_size)
            one.exclude(excluded)
            with closing(one.from_sample(0)) as stream:
                batch = next(stream)
            found |= digest([batch])
            bad += len(batch.bad)
        return found, bad

    plain, _ = run(1, [])
    replaced, bad = run(1, [3, 4, 5])
    assert (replaced, bad) == run(4, [3, 4, 5])
    assert bad == 0
    assert {position for position in plain if plain[position] != replaced[position]} == {3, 4, 5}


def test_a_position_that_is_excluded_again_has_another_substitute_and_the_same_after_a_resume(
    shard_folder: Path,
) -> None:
    def taken(one: TrainLoader) -> dict[int, str]:
        with closing(one.from_sample(0)) as stream:
            return digest([next(stream)])

    once, twice, resumed = (loader(shard_folder) for _ in range(3))
    for one in (once, twice, twice):
        one.exclude(range(2, 6))
    twice.exclude([8, *[9] * 20])  # more often than bad substitutes are borne with
    state = json.loads(json.dumps(twice.state()))
    assert state["excluded"] == [[2, 6], [8, 10], [2, 6], *[[9, 10]] * 19]
    resumed.exclude([2])  # known before
    resumed.restore(state)
    found = taken(twice)
    assert taken(resumed) == found and resumed.state() == state
    assert {position for position, image in taken(once).items() if image != found[position]} >= {2, 3, 4, 5}


def test_evaluation_sees_every_sample_once_and_a_short_last_batch(shard_folder: Path) -> None:
    corpus = open_corpus(shard_folder)
    for world_size in (1, 3, 7):
        loaders = [
            EvaluateLoader(corpus, AUGMENT, batch=16, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        batches = [list(one) for one in loaders]
        assert [p for own in batches for batch in own for p in batch.positions.tolist()] == list(range(120))
        assert max(map(len, batches)) == loaders[0].steps


def test_a_broken_reader_is_an_error_and_threads_end_with_the_stream(shard_folder: Path) -> None:
    before = threading.active_count()
    stream = loader(shard_folder, threads=4).from_sample(0)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


class _Mostly:
    """A corpus whose chosen samples cannot be read, or not be decoded."""

    def __init__(self, folder: Path, bad: set[tuple[int, int]], *, readable: bool = False) -> None:
        self._corpus, self._bad, self._readable = open_corpus(folder), bad, readable
        self.classes, self.label_kind = self._corpus.classes, self._corpus.label_kind
        self.digest, self.remote = self._corpus.digest, False
        self.counts, self.samples = self._corpus.counts, self._corpus.samples
        self.announced: list[int] = []

    def read(self, shard: int, index: int) -> Record:
        record = self._corpus.read(shard, index)
        if (shard, index) not in self._bad:
            return record
        if self._readable:
            return record._replace(payload=b"no image")
        raise BadSampleError("the disk ate it")

    def name(self, shard: int, index: int) -> str:
        return f"{shard}[{index}]"

    def prepare(self, shards: list[int]) -> None:
        self.announced += shards


def test_evaluation_leaves_bad_samples_out_and_names_them_at_every_world_size(shard_folder: Path) -> None:
    whole = open_corpus(shard_folder)
    labels = [whole.read(shard, index).label for shard in range(8) for index in range(15)]
    corpus = _Mostly(shard_folder, {(0, 3), (2, 1), (7, 14)})
    for world_size in (1, 4, 7):
        batches = [
            batch
            for rank in range(world_size)
            for batch in EvaluateLoader(corpus, AUGMENT, batch=16, rank=rank, world_size=world_size)
        ]
        seen = [position for batch in batches for position in batch.positions.tolist()]
        assert seen == [position for position in range(120) if position not in (3, 31, 119)]
        given = [label for batch in batches for label in batch.labels.tolist()]
        assert given == [labels[one] for one in seen]
        bad = [(one.position, one.name, one.reason) for batch in batches for one in batch.bad]
        places = ((3, "0[3]"), (31, "2[1]"), (119, "7[14]"))
        assert bad == [(position, name, "the disk ate it") for position, name in places]


def test_evaluation_announces_the_next_shards_of_its_share_and_each_once(shard_folder: Path) -> None:
    corpus = _Mostly(shard_folder, set())
    for rank, share in enumerate((range(4), range(4, 8))):
        corpus.announced.clear()
        for batch in EvaluateLoader(corpus, AUGMENT, batch=5, rank=rank, world_size=2, threads=1):
            current = int(batch.positions[0]) // 15
            assert set(range(share.start, min(current + 5, share.stop))) <= set(corpus.announced)
        assert corpus.announced == list(share)
    corpus.announced.clear()
    first = next(iter(EvaluateLoader(corpus, AUGMENT, batch=5, threads=1)))
    assert first.positions[0] == 0 and corpus.announced == list(range(5)), "not what is far away"
    with pytest.raises(ValueError, match="batch is 0"):
        EvaluateLoader(corpus, AUGMENT, batch=0)


@pytest.mark.parametrize("readable", [False, True])
def test_bad_samples_shift_nothing_are_named_and_substituted_alike_everywhere(
    shard_folder: Path, readable: bool
) -> None:
    corpus = _Mostly(shard_folder, {(0, 3), (2, 1)}, readable=readable)
    data = DataConfig(train=[CorpusConfig("x")], bad_sample_budget=0.1)

    def run(world_size: int) -> tuple[dict[int, str], list, dict[int, int]]:
        found, named, labels = {}, [], {}
        for rank in range(world_size):
            one = TrainLoader(
                [corpus], data, AUGMENT, seed=5, global_batch=BATCH, rank=rank, world_size=world_size
            )
            with closing(one.from_sample(0)) as stream:
                batch = next(stream)
            found |= digest([batch])
            named += batch.bad
            labels |= dict(zip(batch.positions.tolist(), batch.labels.tolist(), strict=True))
        return found, sorted(named, key=lambda sample: sample.position), labels

    whole, named, labels = run(1)
    assert {sample.name for sample in named} == {"0[3]", "2[1]"}
    reason = "not_an_image: begins with 6e 6f 20 69 6d 61 67 65" if readable else "the disk ate it"
    assert {sample.reason for sample in named} == {reason}
    place = re.compile(r"(\d+)\[(\d+)\]")
    for sample in named:
        shard, index = map(int, place.fullmatch(sample.substitute).groups())
        assert labels[sample.position] == corpus.read(shard, index).label, "its substitute's"
    assert len({labels[sample.position] for sample in named}) > 1
    assert run(7) == (whole, named, labels)
    good = stretch(shard_folder, start=0, steps=1, world_size=1)
    differing = {position for position in good if good[position] != whole[position]}
    assert differing == {sample.position for sample in named}


def test_too_many_bad_samples_stop_the_run_and_name_the_first(shard_folder: Path) -> None:
    corpus = _Mostly(shard_folder, {(0, index) for index in range(10)})
    data = DataConfig(train=[CorpusConfig("x")], bad_sample_budget=0.01)
    stream = TrainLoader([corpus], data, AUGMENT, seed=5, global_batch=120).from_sample(0)
    with closing(stream), pytest.raises(UserError, match=r"bad samples among .* 0\[\d\]: the disk ate it"):
        next(stream)


@pytest.mark.parametrize(("world_size", "allowed"), [(1, 6), (4, 1)])
def test_a_rank_may_meet_its_share_of_the_bad_samples_that_an_epoch_may_have(
    shard_folder: Path, world_size: int, allowed: int
) -> None:
    corpus = _Mostly(shard_folder, {(shard, index) for shard in range(8) for index in range(2)})
    data = DataConfig(train=[CorpusConfig("x")], bad_sample_budget=0.05)
    one = TrainLoader([corpus], data, AUGMENT, seed=5, global_batch=world_size, world_size=world_size)
    bad = 0
    with closing(one.from_sample(0)) as stream, pytest.raises(UserError, match=f"^{allowed + 1} bad samples"):
        for batch in stream:
            bad += len(batch.bad)
    assert bad == allowed


def test_a_lost_corpus_is_an_error_and_no_endless_search(shard_folder: Path) -> None:
    every = {(shard, index) for shard in range(8) for index in range(15)}
    data = DataConfig(train=[CorpusConfig("x")], bad_sample_budget=1.0)
    stream = TrainLoader([_Mostly(shard_folder, every)], data, AUGMENT, seed=5, global_batch=8).from_sample(0)
    with closing(stream), pytest.raises(UserError, match="16 substitutes are bad as well"):
        next(stream)


def test_corpora_that_do_not_fit_are_refused(shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed with 5 ranks: multiples of 5"):
        loader(shard_folder, world_size=5, batch=16)
    with pytest.raises(UserError, match=r"data\.train is empty"):
        open_train_corpora(DataConfig())
    with pytest.raises(UserError, match="less than one global_batch"):
        loader(shard_folder, batch=500, tail="drop")
    with pytest.raises(UserError, match="no such folder"):
        open_corpus(tmp_path / "nowhere")
    (tmp_path / "other" / "dog").mkdir(parents=True)
    (tmp_path / "other" / "dog" / "1.jpg").write_bytes(b"x")
    data = DataConfig(train=[CorpusConfig(str(shard_folder)), CorpusConfig(str(tmp_path / "other"))])
    with pytest.raises(UserError, match=r"data\.train\[1\]: has 1 class,"):
        TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=8)
    data = DataConfig(train=[CorpusConfig(str(shard_folder)), CorpusConfig(str(shard_folder), 1e-9)])
    with pytest.raises(UserError, match=r"^data\.train: weight 1e-09 is below 1/10000 of all"):
        TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=8)
