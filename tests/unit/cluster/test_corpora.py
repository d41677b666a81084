"""Shards that a login node can read are looked at before the queue; what only the nodes see is told of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from cluster.site import SiteConfig
from cluster.submission import Prepared, Request, corpora_notes, prepare, preview
from coatnet.config import UserError
from data_pipeline.sharding.sharder import shard_corpus


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two and of three classes, a damaged copy, shards on their way, images, a tar, nothing."""
    root = tmp_path_factory.mktemp("corpora")
    for name, classes in (("two", "ab"), ("three", "abc")):
        for label in classes:
            (root / "images" / name / label).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(root / "images" / name / label / "0.jpg")
        shard_corpus(root / "images" / name, root / name, quiet=True)
    shutil.copytree(root / "two", root / "torn")
    (root / "torn" / "manifest.json").write_text("{")
    shutil.copytree(root / "two", root / "under_way")
    (root / "under_way" / "manifest.json").unlink()
    (root / "empty").mkdir()
    (root / "link").symlink_to("elsewhere")
    return root


def prepared(corpora: Path, *words: str, directory: str = "run") -> Prepared:
    config = corpora / "config.yaml"
    config.write_text("model: {name: coatnet_0}\n")
    site = SiteConfig(nodes=1, gpus_per_node=1)
    words = tuple(word.replace("AT", str(corpora)) for word in words)
    return prepare(Request("pretrain", str(config), words, site, directory=corpora / directory))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.train=AT/torn"], r"/torn/manifest\.json"),
        (["data.train=AT/two", "data.evaluate=AT/torn"], r"/torn/manifest\.json"),
        (["data.train=[AT/two,AT/nowhere,AT/three]"], r"^data\.train\[2\]: has 3 classes, not the 2 of data"),
        (
            ["data.train=AT/two", "data.evaluate=AT/three"],
            r"^data\.evaluate: .*/three has other classes than",
        ),
        (
            ["data.train=AT/two/shard-000000.tar"],
            r"^data\.train\[0\]: .*shard-000000\.tar is no folder; give",
        ),
    ],
)
def test_shards_that_no_rank_could_train_on_are_refused_before_the_queue(
    corpora: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preview(prepared(corpora, *words))


@pytest.mark.parametrize("train", ["nowhere", "empty", "under_way", "images/two", "two"])
def test_what_is_to_come_or_lies_on_the_nodes_alone_is_left_to_them(corpora: Path, train: str) -> None:
    assert preview(prepared(corpora, f"data.train=AT/{train}", "data.evaluate=AT/images/three"))
    assert preview(prepared(corpora, f"data.train=AT/{train}", "data.evaluate=https://host/shards"))


def test_a_corpus_that_is_not_here_is_told_of_with_the_nearest_that_is(corpora: Path) -> None:
    train = "data.train=[AT/twoo,AT/two,AT/link,AT/two/manifest.json]"
    notes = corpora_notes(prepared(corpora, train, "data.evaluate=AT/no/where"))
    later = "; the nodes will look for it before the first step"
    assert notes == [
        f"{corpora}/twoo is not here (there is {corpora}/two){later}",
        f"{corpora}/link is not here{later}",
        f"{corpora}/no/where is not here{later}",
    ]


@pytest.mark.parametrize("place", ["two", "two/manifest.json", "link"])
def test_a_run_in_a_file_or_among_shards_is_refused_before_the_queue(corpora: Path, place: str) -> None:
    with pytest.raises(UserError, match=r"holds manifest\.json, which is no run's|which is no folder"):
        preview(prepared(corpora, "data.train=AT/two", directory=place))
