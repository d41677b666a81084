"""Descriptors of open shards: how many there are, when they are closed, what becomes of a stale one."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline import shard_files
from data_pipeline.corpus import Corpus
from data_pipeline.record import BadSampleError
from data_pipeline.shard_files import LocalFiles, OpenShards


class CacheFiles(LocalFiles):
    """A folder that is taken for a cache: its files may leave while they are open."""

    remote = True


@pytest.fixture
def copied(shard_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path / "shards"))


def open_shards(folder: Path) -> set[int]:
    """Return the numbers of the folder's shards that this process has open, removed ones as well."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(path))
    return {int(Path(link).name[6:12]) for link in links if link.startswith(f"{folder}/shard-")}


def test_only_so_many_shards_stay_open_and_those_that_were_read_last(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 3)
    corpus = Corpus.open(copied)
    for shard in (0, 1, 2, 0, 3, 4):
        corpus.read(shard, 0)
    assert open_shards(copied) == {0, 3, 4}


def test_where_the_machine_allows_fewer_open_files_than_shards_half_are_closed_the_longest_unused(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [bytes(Corpus.open(copied).read(shard, 0).payload) for shard in range(8)]
    corpus, pauses = Corpus.open(copied), []
    for shard in range(8):
        corpus.index(shard)
    for shard in (2, 0, 1, 3, 4, 2):
        corpus.read(shard, 0)
    free = os.dup(0)
    os.close(free)
    monkeypatch.setattr(shard_files.time, "sleep", pauses.append)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        found = bytes(corpus.read(5, 0).payload)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert open_shards(copied) == {2, 4, 5}
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        others = [bytes(corpus.read(shard, 0).payload) for shard in range(8)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert others == expected and found == expected[5] and not pauses


def test_a_shard_that_left_the_cache_is_closed_once_it_idles_and_no_sooner(copied: Path) -> None:
    corpus = Corpus(Corpus.open(copied).manifest, CacheFiles(copied))
    corpus.read(0, 0)
    (copied / "shard-000000.tar").unlink()
    for number in range(30):
        corpus.read(1, number % 15)
    corpus.read(2, 0)
    assert open_shards(copied) == {0, 1, 2}
    for number in range(40):
        corpus.read(1, number % 15)
    corpus.read(3, 0)
    assert open_shards(copied) == {1, 2, 3}


def test_who_cannot_open_a_shard_closes_what_it_opened_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard-000001.tar").write_bytes(b"short")
    closed: list[int] = []
    unheard: list[Any] = []
    pauses: list[float] = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or close(descriptor))
    monkeypatch.setattr(sys, "unraisablehook", unheard.append)
    monkeypatch.setattr(shard_files.time, "sleep", pauses.append)
    shards = OpenShards(LocalFiles(tmp_path))
    with pytest.raises(BadSampleError, match="No such file"):
        shards.read("shard-000000.tar", 0, 1, expected_bytes=1)
    assert not closed
    with pytest.raises(BadSampleError, match="has 5 bytes, the manifest says 6"):
        shards.read("shard-000001.tar", 0, 1, expected_bytes=6)
    assert len(closed) == 1 and not open_shards(tmp_path) and not unheard and not pauses


def test_a_failure_that_may_pass_is_waited_for_and_closes_no_other_shard(
    copied: Path, fail_reads: Callable[..., Any]
) -> None:
    corpus = Corpus.open(copied)
    for shard in (0, 1, 2):
        corpus.read(shard, 0)
    pauses, failures = fail_reads(errno.EIO, times=3)
    corpus.read(3, 0)
    assert pauses == [0.2, 2.0] and not failures
    assert open_shards(copied) == {0, 1, 2}


def test_a_file_that_could_not_be_read_is_waited_for_again_after_a_minute(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pauses, turns = [1000.0], [], []

    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(shard_files, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pauses.append))
    shards = OpenShards(LocalFiles(copied))
    for seconds in (0.0, 29.0, 30.0, 61.0):
        clock[0] += seconds
        with pytest.raises(BadSampleError, match="Input/output error"):
            shards.use("shard-000000.tar", lambda path: os.pread(0, 1, 0))
        turns.append(len(pauses))
    assert turns == [3, 3, 3, 6]


def test_a_stale_descriptor_is_let_go_of_and_not_tried_again_for_each_sample(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a server was exchanged: what was opened before fails for good, what is opened now does not."""
    corpus = Corpus.open(copied)
    whole = [bytes(corpus.read(0, number).payload) for number in range(15)]
    failures = []
    (stale,) = corpus._shards._open.values()
    read = shard_files.OpenShard.read

    def read_or_fail(shard: shard_files.OpenShard, start: int, size: int) -> bytes:
        if shard is stale:
            failures.append(start)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(shard, start, size)

    monkeypatch.setattr(shard_files.OpenShard, "read", read_or_fail)
    assert [bytes(corpus.read(0, number).payload) for number in range(15)] == whole
    assert len(failures) == 1
