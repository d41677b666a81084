"""What a corpus keeps of its indexes, and what it makes of a shard that holds nothing."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import corpus as corpus_module
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.index import ShardIndex, file_hash, index_path
from data_pipeline.loader import TrainLoader
from data_pipeline.manifest import MANIFEST


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the shards whose indexes are read, in that order."""
    read, parse = [], corpus_module.parse_array

    def noted(content: bytes, *, origin: str, **more: Any) -> Any:
        read.append(int(Path(origin).name[6:12]))
        return parse(content, origin=origin, **more)

    monkeypatch.setattr(corpus_module, "parse_array", noted)
    return read


def test_so_many_indexes_are_kept_and_the_longest_unused_ones_are_read_again(
    shard_folder: Path, parsed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "_KEPT_INDEXES", 2)
    corpus = Corpus.open(shard_folder)
    for shard in (0, 1, 0, 0, 2, 0, 1, 1):
        corpus.read(shard, 0)
    assert parsed == [0, 1, 2, 1]


@pytest.mark.parametrize(("reads", "again"), [(47, []), (49, [0])])
def test_an_index_that_nobody_has_asked_for_long_is_kept_no_longer(
    shard_folder: Path, parsed: list[int], reads: int, again: list[int]
) -> None:
    corpus = Corpus.open(shard_folder)
    for shard in (0, *[1] * (reads - 1), 2, 1, 0):
        corpus.read(shard, 0)
    assert parsed == [0, 1, 2, *again], "three are kept, each for the time of sixteen turns of them all"


def test_a_shard_that_holds_no_sample_changes_nothing(shard_folder: Path, tmp_path: Path) -> None:
    """As where all images of a tar of others were left out."""
    folder = Path(shutil.copytree(shard_folder, tmp_path / "shards"))
    manifest = Corpus.open(folder).manifest
    content, _ = ShardIndex(Corpus.open(folder).index(0).samples[:0]).to_bytes()
    index_path(folder / manifest.shards[0].name).write_bytes(content)
    empty = replace(manifest.shards[0], samples=0, index_xxh3=file_hash(content))
    (folder / MANIFEST).write_text(replace(manifest, shards=[empty, *manifest.shards[1:]]).to_json())
    corpus, data = Corpus.open(folder), DataConfig(train=[CorpusConfig("x")])
    assert corpus.class_counts().sum() == corpus.samples == 105
    with closing(
        TrainLoader([corpus], data, AugmentConfig(image_size=8), seed=0, global_batch=105).from_sample(0)
    ) as stream:
        batch = next(stream)
    assert len(set(batch.keys.tolist())) == 105 and not batch.bad
