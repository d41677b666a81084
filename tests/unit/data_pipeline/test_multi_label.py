from __future__ import annotations

import base64
import json
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from coatnet.config import UserError
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.loader import TrainLoader
from data_pipeline.open_corpus import open_train_corpora
from data_pipeline.sharding.in_place import index_in_place
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.sharding.sources import SourceOptions

AUGMENT = AugmentConfig(image_size=8)


@pytest.fixture
def tagged(image_folder: Path, tmp_path: Path) -> Path:
    """Ten images; number i has the labels `odd` or `even` with 1, and `all` with i / 10."""
    lines = [
        {
            "bytes": base64.b64encode(path.read_bytes()).decode(),
            "labels": {"odd" if number % 2 else "even": 1.0, "all": number / 10},
        }
        for number, path in enumerate(sorted(image_folder.rglob("*.jpg"))[:10])
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shard_corpus(tmp_path / "table.jsonl", tmp_path / "shards", quiet=True)
    return tmp_path / "shards"


def test_weighted_labels_arrive_as_rows(tagged: Path) -> None:
    assert Corpus.open(tagged).classes == ["all", "even", "odd"]
    data = DataConfig(train=[CorpusConfig(str(tagged))])
    loader = TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=10)
    with closing(loader.from_sample(0)) as stream:
        trained = next(stream).labels.numpy()
    evaluated = next(iter(EvaluateLoader(Corpus.open(tagged), AUGMENT, batch=10))).labels.numpy()
    for rows in (trained, evaluated):
        assert rows.dtype == np.float32
        assert sorted(rows[:, 0].tolist()) == pytest.approx([number / 10 for number in range(10)])
        assert (rows[:, 1] + rows[:, 2] == 1).all()
        assert (rows[:, 2] == np.round(rows[:, 0] * 10) % 2).all()


def test_single_and_multi_label_corpora_of_one_vocabulary_mix(
    tagged: Path, image_folder: Path, tmp_path: Path
) -> None:
    single = tmp_path / "single"
    for name in ("all", "even", "odd"):
        (single / name).mkdir(parents=True)
        source = next(path for path in sorted(image_folder.rglob("*.jpg"))[10:])
        (single / name / "1.jpg").write_bytes(source.read_bytes())
    data = DataConfig(train=[CorpusConfig(str(tagged), 0.5), CorpusConfig(str(single), 0.5)])
    loader = TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=1000)
    with closing(loader.from_sample(0)) as stream:
        batch = next(stream)
    assert batch.labels.shape == (1000, 3)
    one_hot = (batch.labels.sum(dim=1) == 1) & (batch.labels.max(dim=1).values == 1)
    assert int(one_hot.sum()) >= 500


@pytest.mark.parametrize("kind", ["table", "folder", "tars", "in place"])
def test_a_corpus_of_one_label_each_can_be_one_of_several(
    image_folder: Path, tmp_path: Path, kind: str
) -> None:
    """A validation set whose images happen to have one label each is judged as the training set is."""
    source = tmp_path / "source"
    for number, name in enumerate(("ant", "bee")):
        (source / name).mkdir(parents=True)
        image = sorted((image_folder / name).iterdir())[number]
        (source / name / "0.jpg").write_bytes(image.read_bytes())
    options = SourceOptions(multi_label=True)
    if kind == "table":
        source = source / "table.csv"
        source.write_text("path,labels\nant/0.jpg,ant\nbee/0.jpg,bee\n")
    elif kind != "folder":
        (tmp_path / "tars").mkdir()
        with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
            for name in ("ant", "bee"):
                tar.add(source / name / "0.jpg", f"{name}/0.jpg")
        source = tmp_path / "tars"
    if kind == "in place":
        index_in_place(source, source_options=options, quiet=True)
        corpus = Corpus.open(source)
    else:
        shard_corpus(source, tmp_path / "shards", source_options=options, quiet=True)
        corpus = Corpus.open(tmp_path / "shards")
    assert (corpus.label_kind, corpus.classes) == ("multi", ["ant", "bee"])
    labels = next(iter(EvaluateLoader(corpus, AUGMENT, batch=2))).labels
    assert sorted(labels.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


def test_a_mixture_refuses_to_drop_a_tail(tagged: Path) -> None:
    data = DataConfig(train=[CorpusConfig(str(tagged)), CorpusConfig(str(tagged))], tail="drop")
    with pytest.raises(UserError, match=r"data\.tail is 'drop' with several corpora"):
        TrainLoader(open_train_corpora(data), data, AUGMENT, seed=0, global_batch=2)
