"""What a corpus keeps of its indexes, and what it makes of a shard that holds nothing."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline import corpus as corpus_module
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.index import ShardIndex, file_hash, index_path
from data_pipeline.loader import TrainLoader
from data_pipeline.manifest import MANIFEST


def test_so_many_indexes_are_kept_and_the_longest_unused_ones_are_read_again(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, parse = [], corpus_module.parse_array
    monkeypatch.setattr(corpus_module, "_KEPT_INDEXES", 2)
    monkeypatch.setattr(
        corpus_module,
        "parse_array",
        lambda *given, **more: parsed.append(more["origin"]) or parse(*given, **more),
    )
    corpus = Corpus.open(shard_folder)
    for shard in (0, 1, 0, 0, 2, 0, 1, 1):
        corpus.read(shard, 0)
    assert [int(Path(origin).name[6:12]) for origin in parsed] == [0, 1, 2, 1]


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
