"""A file system that fails for a moment while images are packed: none is left out for good."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data_pipeline.corpus import Corpus
from data_pipeline.sharding import job
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus


def fail(monkeypatch: pytest.MonkeyPatch, number: int, *, times: int) -> None:
    """Let the first readings of an image fail."""
    left = [OSError(number, os.strerror(number))] * times
    read = os.preadv

    def preadv(*arguments: object) -> int:
        if left:
            raise left.pop()
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(job.os, "preadv", preadv)


@pytest.mark.parametrize(("number", "times"), [(errno.EIO, 1), (errno.ESTALE, 3), (errno.ETIMEDOUT, 2)])
def test_an_image_whose_file_system_fails_for_a_moment_is_packed(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    number: int,
    times: int,
) -> None:
    fail(monkeypatch, number, times=times)
    manifest = shard_corpus(image_folder, tmp_path / "out", options=ShardOptions(bad_budget=0.0), quiet=True)
    assert manifest["all"].counts["written"] == 120 == Corpus.open(tmp_path / "out").samples
    assert len(pauses) == times


@pytest.mark.parametrize(("number", "waits"), [(errno.EIO, 3), (errno.EACCES, 0)])
def test_an_image_that_cannot_be_read_at_all_is_left_out_and_named(
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    number: int,
    waits: int,
) -> None:
    fail(monkeypatch, number, times=waits + 1)
    options = ShardOptions(bad_budget=0.1)
    manifest = shard_corpus(image_folder, tmp_path / "out", options=options, quiet=True)
    assert manifest["all"].counts["skipped"] == 1 and len(pauses) == waits
    assert os.strerror(number) in (tmp_path / "out" / "report.jsonl").read_text()
