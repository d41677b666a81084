"""The stream goes where the position goes: through phases, back, and past what was excluded meanwhile."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from coatnet.runtime.account import TimeAccount
from coatnet.runtime.data_wait import FETCHES, WAITS
from coatnet.runtime.ranks import Ranks
from data_pipeline import prefetch
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.config import CacheConfig, CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.open_corpus import open_corpus
from data_pipeline.shard_files import LocalFiles
from data_pipeline.stream import Stream

PHASES = [
    SimpleNamespace(end=48, global_batch=24, image_size=16),
    SimpleNamespace(end=108, global_batch=30, image_size=32),
]


class FarFiles(LocalFiles):
    """A folder that is taken for a remote one; it tells what is said while a file is fetched."""

    remote = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._fetching = ""
        self.listen: Callable[[], object] = lambda: None

    @property
    def fetching(self) -> str:
        return self._fetching

    def path(self, name: str) -> Path:
        self._fetching = f"far/{name}"
        self.listen()
        self._fetching = ""
        return super().path(name)


def make_stream(
    shard_folder: Path,
    tmp_path: Path,
    *,
    files: FarFiles | None = None,
    data: DataConfig | None = None,
    ranks: Ranks | None = None,
) -> Stream:
    data = data or DataConfig(train=[CorpusConfig(str(shard_folder))])
    config = SimpleNamespace(seed=5, data=data, augment=AugmentConfig(image_size=224))
    account = TimeAccount(tmp_path, rank=0, life=1)
    manifest = Corpus.open(shard_folder).manifest
    corpus = open_corpus(shard_folder) if files is None else Corpus(manifest, files)
    return Stream([corpus], config, phases=PHASES, ranks=ranks or Ranks(), account=account)


@pytest.fixture
def stream(shard_folder: Path, tmp_path: Path) -> Stream:
    return make_stream(shard_folder, tmp_path)


@pytest.fixture
def position() -> SimpleNamespace:
    return SimpleNamespace(samples_seen=0)


def taken(batches: Iterator[Batch], position: SimpleNamespace) -> Batch:
    """Take a batch as the loop does: the position moves on once the step is done."""
    batch = next(batches)
    position.samples_seen += len(batch.positions)
    return batch


def test_every_phase_has_its_batch_and_size_and_the_last_one_ends_the_stream(
    stream: Stream, position: SimpleNamespace
) -> None:
    batches = stream.follow(position)
    found = [taken(batches, position) for _ in range(4)]
    assert [tuple(batch.images.shape[:2]) for batch in found] == [(24, 16), (24, 16), (30, 32), (30, 32)]
    assert sorted(p for batch in found for p in batch.positions.tolist()) == list(range(108))
    assert next(batches, None) is None


def test_a_run_of_no_setback_opens_each_phases_stream_once(
    stream: Stream, position: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, loader = [], stream._loader
    monkeypatch.setattr(stream, "_loader", lambda phase: opened.append(phase) or loader(phase))
    batches = stream.follow(position)
    for _ in range(4):
        taken(batches, position)
    assert opened == PHASES


def test_a_position_that_was_set_back_is_gone_through_again_to_the_pixel(
    stream: Stream, position: SimpleNamespace
) -> None:
    with closing(stream.follow(position)) as batches:
        first, *_ = [taken(batches, position) for _ in range(3)]
        position.samples_seen = 0
        again = taken(batches, position)
    assert again.positions.tolist() == first.positions.tolist()
    assert again.images.equal(first.images)


def test_ranks_share_each_step_and_go_on_together(shard_folder: Path, tmp_path: Path) -> None:
    positions = []
    for rank in (0, 1):
        position = SimpleNamespace(samples_seen=0)
        stream = make_stream(shard_folder, tmp_path, ranks=Ranks(rank, 2))
        with closing(stream.follow(position)) as batches:
            for _ in range(2):
                positions += next(batches).positions.tolist()
                position.samples_seen += 24
    assert sorted(positions) == list(range(48))


def test_what_is_excluded_meanwhile_is_replaced_from_the_next_batch_on(
    stream: Stream, position: SimpleNamespace
) -> None:
    with closing(stream.follow(position)) as batches:
        taken(batches, position)
        stream.exclude([30])
        excluded = taken(batches, position)
    position.samples_seen = 24
    (row,) = (excluded.positions == 30).nonzero()[0].tolist()
    stream._excluded.clear()
    with closing(stream.follow(position)) as batches:
        plain = taken(batches, position)
    assert excluded.positions.equal(plain.positions)
    differing = [n for n in range(24) if not excluded.images[n].equal(plain.images[n])]
    assert differing == [row] and excluded.keys[row] != plain.keys[row] and not excluded.bad


def test_no_thread_outlives_a_phase_or_the_stream(stream: Stream, position: SimpleNamespace) -> None:
    before = threading.active_count()
    batches = stream.follow(position)
    taken(batches, position)
    during = threading.active_count()
    taken(batches, position)
    taken(batches, position)
    assert before < threading.active_count() <= during, "the first phase's have ended"
    batches.close()
    assert threading.active_count() == before


def test_a_sample_is_named_by_its_place_in_the_corpus(stream: Stream, shard_folder: Path) -> None:
    corpus = open_corpus(shard_folder)
    names = {corpus.name(shard, index) for shard, count in enumerate(corpus.counts) for index in range(count)}
    assert {stream.name(position) for position in range(120)} == names


def test_a_stream_that_checks_a_checkpoint_takes_over_what_it_excludes(
    shard_folder: Path, tmp_path: Path
) -> None:
    first, second = (make_stream(shard_folder, tmp_path) for _ in range(2))
    first.exclude(range(10, 40))
    second.check(json.loads(json.dumps(first.state())))  # as a replay of a bundle does
    assert second.state() == first.state() and second.state()["excluded"] == [[10, 40]]


def test_the_next_excluded_position_is_the_first_that_is_not_passed(stream: Stream) -> None:
    stream.exclude([30, 12])
    assert [stream.next_excluded(position) for position in (0, 12, 13, 31)] == [12, 12, 30, math.inf]


@pytest.mark.parametrize(
    ("path", "ranks", "warns"),
    [
        ("https://host/shards", Ranks(0, 2, local_world_size=2), True),
        ("https://host/shards", Ranks(1, 2, local_world_size=2), False),
        (
            "https://host/shards",
            Ranks(0, 2, local_world_size=1),
            False,
        ),  # a node of two has half of the lanes
        ("shards", Ranks(0, 2, local_world_size=2), False),
    ],
)
def test_the_first_rank_warns_of_a_cache_that_is_too_small_for_the_remote_shards_of_its_node(
    shard_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    ranks: Ranks,
    warns: bool,
) -> None:
    limit = sum(shard.bytes for shard in Corpus.open(shard_folder).manifest.shards) * 3 // 4
    cache = CacheConfig(directory=str(tmp_path / "cache"), limit=str(limit))
    data = DataConfig(train=[CorpusConfig(path)], cache=cache)
    make_stream(shard_folder, tmp_path, files=FarFiles(shard_folder), data=data, ranks=ranks)
    assert capsys.readouterr().err.count("warning: the cache") == warns
    if path == "shards":
        assert not (tmp_path / "cache").exists()


def test_while_a_batch_waits_for_a_file_the_stream_says_so_and_whose(
    shard_folder: Path, tmp_path: Path, position: SimpleNamespace
) -> None:
    files, said = FarFiles(shard_folder), []
    stream = make_stream(shard_folder, tmp_path, files=files, ranks=Ranks(3, 4))
    files.listen = lambda: said.append(stream.excuses())
    with closing(stream.follow(position)) as batches:
        taken(batches, position)
    assert said[0][FETCHES].startswith("far/shard-")
    assert said[0][WAITS] == "rank 3 waits for its batch"
    assert stream.excuses() == {}


def test_a_wait_for_a_batch_may_be_ended(
    shard_folder: Path, tmp_path: Path, position: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LOOK_SECONDS", "_ENDING_SECONDS"):
        monkeypatch.setattr(prefetch, name, 0.01)
    files, came = FarFiles(shard_folder), threading.Event()
    files.listen = lambda: came.wait(20)

    def stop() -> None:
        raise ZeroDivisionError

    batches = make_stream(shard_folder, tmp_path, files=files).follow(position, meanwhile=stop)
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert not came.is_set()
    came.set()
    for thread in threading.enumerate():
        if thread.name.startswith("loader-"):
            thread.join(60)
