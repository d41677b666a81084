"""The five corruption cases: a flipped bit in a header or a payload, a truncation, a lost, a replaced shard.

Nothing damaged is ever handed on: each damaged sample is named, and `verify` sees even what no sample holds.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.index import ShardIndex, file_hash, index_path
from data_pipeline.loader import TrainLoader
from data_pipeline.manifest import MANIFEST
from data_pipeline.open_corpus import open_train_corpora
from data_pipeline.record import BadSampleError
from data_pipeline.shard_files import LocalFiles
from data_pipeline.tools.verify import lint_images, verify_shards

FLIPS = 100
CUTS = 20


@pytest.fixture
def damaged(shard_folder: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be broken."""
    return Path(shutil.copytree(shard_folder, tmp_path / "shards"))


def shard_path(folder: Path, number: int = 0) -> Path:
    return folder / Corpus.open(folder).manifest.shards[number].name


def contents(corpus: Corpus, shard: int = 0) -> list[bytes | None]:
    """Read all samples of a shard; None where one is refused."""
    found: list[bytes | None] = []
    for index in range(int(corpus.counts[shard])):
        try:
            found.append(corpus.read(shard, index).payload)
        except BadSampleError as error:
            assert "shard-" in str(error)
            found.append(None)
    return found


def problems(folder: Path) -> list[str]:
    return [p.what for p in verify_shards(Corpus.open(folder), folder, threads=1, done=lambda _: None)]


class LeavesOnce(LocalFiles):
    """A cache that each file leaves once, after it was asked for and before it is opened."""

    remote = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: set[str] = set()

    def path(self, name: str) -> Path:
        found = super().path(name if name in self.asked else f"{name}.gone")
        self.asked.add(name)
        return found


def test_a_file_that_leaves_the_cache_before_it_is_opened_is_fetched_again(
    shard_folder: Path, pauses: list[float]
) -> None:
    corpus = Corpus(Corpus.open(shard_folder).manifest, LeavesOnce(shard_folder))
    assert contents(corpus) == contents(Corpus.open(shard_folder))


def test_one_flipped_bit_anywhere_is_never_accepted(damaged: Path) -> None:
    path = shard_path(damaged)
    original = path.read_bytes()
    whole = contents(Corpus.open(damaged))
    draw = random.Random(0)
    for trial in range(FLIPS):
        # every third flip goes into one of the tar's headers, where other readers lose half of a shard
        starts = [int(at) for at in Corpus.open(damaged).index(0).samples["offset"]]
        byte = draw.choice(starts) + draw.randrange(512) if trial % 3 == 0 else draw.randrange(len(original))
        broken = bytearray(original)
        broken[byte] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        got = contents(Corpus.open(damaged))
        in_a_sample = byte < len(original) - 1024
        assert [now for now in got if now is not None and now not in whole] == []
        assert got.count(None) == (1 if in_a_sample else 0), f"byte {byte}"
        if trial % 10 == 0 or not in_a_sample:
            assert problems(damaged), f"byte {byte}"


def test_a_flipped_bit_behind_the_end_of_a_samples_name_is_no_part_of_it(damaged: Path) -> None:
    corpus = Corpus.open(damaged)
    usual = corpus.name(0, 0)
    path, name = shard_path(damaged), usual.split()[1].encode()
    content = bytearray(path.read_bytes())
    content[content.index(name) + len(name) + 5] ^= 0x40
    path.write_bytes(content)
    assert Corpus.open(damaged).name(0, 0) == usual


def test_a_truncation_at_any_offset_is_never_accepted(damaged: Path) -> None:
    path = shard_path(damaged)
    original = path.read_bytes()
    draw = random.Random(1)
    headers = [int(at) for at in Corpus.open(damaged).index(0).samples["offset"]]
    for length in [0, 1, len(original) - 1, *headers, *(draw.randrange(len(original)) for _ in range(CUTS))]:
        path.write_bytes(original[:length])
        corpus = Corpus.open(damaged)
        assert set(contents(corpus)) == {None}, f"cut at {length}"
        assert problems(damaged)


def test_a_truncation_while_the_shard_is_open_kills_nothing(damaged: Path) -> None:
    corpus = Corpus.open(damaged)
    last = int(corpus.counts[0]) - 1
    corpus.read(0, 0)
    with shard_path(damaged).open("r+b") as file:
        file.truncate(int(corpus.index(0).samples[last]["offset"]) + 7)
    corpus.read(0, 0)
    with pytest.raises(BadSampleError, match="ends within the sample"):
        corpus.read(0, last)


def test_a_vanished_shard_is_named(damaged: Path) -> None:
    shard_path(damaged).unlink()
    corpus = Corpus.open(damaged)
    with pytest.raises(BadSampleError, match=r"shard-000000\.tar: No such file"):
        corpus.read(0, 0)
    assert any("No such file" in what for what in problems(damaged))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ESHUTDOWN])
@pytest.mark.parametrize("times", [1, 3])
def test_a_file_system_that_fails_for_a_moment_costs_no_sample(
    damaged: Path, fail_reads: Callable[..., Any], number: int, times: int
) -> None:
    """As Lustre or NFS do while a client finds its way back to the server."""
    pauses, failures = fail_reads(number, times=times)
    assert None not in contents(Corpus.open(damaged))
    assert not failures and len(pauses) == times - 1


def test_a_shard_that_the_disk_cannot_read_is_waited_for_once_and_not_for_each_sample(
    damaged: Path, fail_reads: Callable[..., Any]
) -> None:
    pauses, _ = fail_reads(errno.EIO, times=10_000)
    corpus = Corpus.open(damaged)
    for index in range(15):
        with pytest.raises(BadSampleError, match=r"shard-000000\.tar: Input/output error"):
            corpus.read(0, index)
    assert len(pauses) == 3


def test_a_replaced_shard_is_refused_even_with_its_own_index_and_equal_size(damaged: Path) -> None:
    first, second = shard_path(damaged, 0), shard_path(damaged, 1)
    replaced = second.read_bytes()
    size = first.stat().st_size
    first.write_bytes(replaced[:size].ljust(size, b"\0"))
    assert set(contents(Corpus.open(damaged))) == {None}
    index_path(first).write_bytes(index_path(second).read_bytes())
    with pytest.raises(BadSampleError, match="differs from what the manifest says"):
        Corpus.open(damaged).read(0, 0)


@pytest.mark.parametrize("garbage", [b"", b"\x93NUMPY", b"not an array", b"\x80\x04\x95pickle"])
def test_a_garbled_index_is_refused(damaged: Path, garbage: bytes) -> None:
    index_path(shard_path(damaged)).write_bytes(garbage)
    with pytest.raises(BadSampleError, match="differs from what the manifest says"):
        Corpus.open(damaged).read(0, 0)
    assert problems(damaged)


@pytest.mark.parametrize("label", [-1, 3, 7])
def test_a_class_that_the_manifest_does_not_name_makes_a_shard_bad(damaged: Path, label: int) -> None:
    _relabel(damaged, lambda samples: samples["label"].put(3, label))
    with pytest.raises(BadSampleError, match="names a class beyond the manifest's 3"):
        Corpus.open(damaged).read(0, 0)


@pytest.mark.parametrize("label", [0, 2])
def test_a_shard_of_one_class_is_as_good_as_another(damaged: Path, label: int) -> None:
    _relabel(damaged, lambda samples: samples["label"].fill(label))
    corpus = Corpus.open(damaged)
    assert {corpus.read(0, index).label for index in range(15)} == {label}


def test_an_index_of_fewer_samples_than_the_manifest_says_makes_a_shard_bad(damaged: Path) -> None:
    _relabel(damaged, lambda samples: None, kept=14)
    with pytest.raises(BadSampleError, match="its index holds 14 samples, the manifest says 15"):
        Corpus.open(damaged).read(0, 0)


def _relabel(folder: Path, change: Callable[[np.ndarray], None], *, kept: int = 15) -> None:
    """Give the first shard another index, which its manifest names."""
    manifest = Corpus.open(folder).manifest
    index = np.array(Corpus.open(folder).index(0).samples)
    change(index)
    content, _ = ShardIndex(index[:kept]).to_bytes()
    index_path(shard_path(folder, 0)).write_bytes(content)
    shards = [replace(manifest.shards[0], index_xxh3=file_hash(content)), *manifest.shards[1:]]
    (folder / MANIFEST).write_text(replace(manifest, shards=shards).to_json())


def test_training_goes_on_over_damage_and_names_it(damaged: Path) -> None:
    path = shard_path(damaged, 3)
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    shard_path(damaged, 5).unlink()
    data = DataConfig(train=[CorpusConfig(str(damaged))], bad_sample_budget=0.2)
    loader = TrainLoader(
        open_train_corpora(data), data, AugmentConfig(image_size=8), seed=0, global_batch=120
    )
    with closing(loader.from_sample(0)) as stream:
        batch = next(stream)
    assert len(batch) == 120
    assert len(batch.bad) == 16
    assert sum("shard-000005.tar" in sample.name for sample in batch.bad) == 15
    assert sum("fails its checksum" in sample.reason for sample in batch.bad) == 1


def test_verify_and_lint_find_nothing_in_whole_shards(shard_folder: Path) -> None:
    corpus = Corpus.open(shard_folder)
    counted: list[int] = []
    assert verify_shards(corpus, shard_folder, threads=2, done=counted.append) == []
    assert lint_images(corpus, threads=2, done=counted.append) == []
    assert sum(counted) == 2 * corpus.samples
