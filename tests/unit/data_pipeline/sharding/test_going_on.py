"""Which sharding is the one that was begun before, and which is another."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from coatnet.config import UserError
from data_pipeline.corpus import Corpus
from data_pipeline.sharding import collecting, sharder
from data_pipeline.sharding.in_place import index_in_place
from data_pipeline.sharding.options import OddPolicy, ShardOptions
from data_pipeline.sharding.sharder import shard_corpus
from data_pipeline.sharding.sources import SourceOptions


@pytest.fixture
def tars(image_folder: Path, tmp_path: Path) -> Path:
    """A folder of one tar of two classes."""
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for name in ("ant", "bee"):
            tar.add(image_folder / name / "000.jpg", arcname=f"{name}/0.jpg")
    return tmp_path / "tars"


@pytest.fixture
def table(image_folder: Path, tmp_path: Path) -> Path:
    """A table of two images, one by its path and one by its bytes."""
    image = (image_folder / "ant" / "000.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(image)
    rows = [{"path": "0.jpg", "label": "a"}, {"bytes": base64.b64encode(image).decode(), "label": "b"}]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "table.jsonl"


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Do a sharding up to its last step."""

    def begin(work: Callable[[], object]) -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(collecting, "commit", Mock(side_effect=KeyboardInterrupt))
            work()

    return begin


@pytest.mark.parametrize("kind", ["table", "tars"])
def test_a_sharding_goes_on_whatever_its_source_and_destination_are_called_from_here(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unfinished: Callable[[Callable[[], object]], None],
    kind: str,
) -> None:
    source: Path = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    unfinished(lambda: shard_corpus(source.name, "out", quiet=True))
    written = Mock(wraps=sharder.write_shard)
    monkeypatch.setattr(sharder, "write_shard", written)
    monkeypatch.chdir("/")
    made = shard_corpus(source, tmp_path / "out", quiet=True)
    assert not written.called and made["all"].samples == 2
    monkeypatch.chdir(source.parent)
    assert shard_corpus(Path(source.name), "./out", quiet=True) == made


def test_tars_in_place_are_not_said_to_be_done_by_a_policy_or_hierarchy_that_nobody_looked_at(
    tars: Path, tmp_path: Path, unfinished: Callable[[Callable[[], object]], None]
) -> None:
    (tmp_path / "is_a.txt").write_text("insect ant\n")
    others = [
        {"options": ShardOptions(policy=OddPolicy(gray="skip"))},
        {"options": ShardOptions(check="header")},
        {"source_options": SourceOptions(hierarchy=tmp_path / "is_a.txt")},
    ]
    unfinished(lambda: index_in_place(tars, quiet=True))
    for other in others:
        with pytest.raises(UserError, match=rf"the beginning of a sharding .*; remove {tars}/\.sharding$"):
            index_in_place(tars, quiet=True, **other)  # type: ignore[arg-type]
    made = index_in_place(tars, quiet=True)
    for other in others:
        with pytest.raises(UserError, match=rf"; remove {tars}/manifest\.json to index it anew$"):
            index_in_place(tars, quiet=True, **other)  # type: ignore[arg-type]
    assert index_in_place(tars, options=ShardOptions(seed=3, shard_samples=7), quiet=True) == made


def test_what_a_sharding_left_that_was_killed_as_it_tidied_up_goes_with_the_next_call(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
        shard_corpus(image_folder, tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / ".sharding").exists() and Corpus.open(tmp_path / "out").samples
    shard_corpus(image_folder, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / ".sharding").exists()


def test_packed_shards_are_not_to_be_indexed_again(image_folder: Path, tmp_path: Path) -> None:
    """Their tars hold numbers: without the manifest nobody knew what the classes are called."""
    made = shard_corpus(image_folder, tmp_path / "out", quiet=True)["all"]
    with pytest.raises(UserError, match=r"; packed shards have their index already$"):
        index_in_place(tmp_path / "out", quiet=True)
    assert Corpus.open(tmp_path / "out").manifest == made


def test_a_hierarchy_that_is_given_later_is_not_left_out_in_silence(
    image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "is_a.txt").write_text("insect ant\n")
    shard_corpus(image_folder, tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match="another source or other options; give another folder"):
        options = SourceOptions(hierarchy=tmp_path / "is_a.txt")
        shard_corpus(image_folder, tmp_path / "out", source_options=options, quiet=True)


@pytest.mark.parametrize(
    ("source", "destination", "validation"),
    [("all/train", "all/train", 0.0), ("all/train/shard-000000.tar", "here", 0.0), ("all/train", "all", 0.5)],
    ids=["itself", "a link", "its part"],
)
def test_tars_that_are_read_are_not_written_over(
    image_folder: Path, tmp_path: Path, source: str, destination: str, validation: float
) -> None:
    """Tars of others are called like shards as often as not."""
    (tmp_path / "all" / "train").mkdir(parents=True)
    (tmp_path / "here").symlink_to("all/train")
    tar = tmp_path / "all" / "train" / "shard-000000.tar"
    with tarfile.open(tar, "w") as made:
        made.add(image_folder, arcname=".")
    before, options = tar.read_bytes(), ShardOptions(validation=validation)
    with pytest.raises(
        UserError, match="holds the tars that are read; give another DESTINATION, or --in-place"
    ):
        shard_corpus(tmp_path / source, tmp_path / destination, options=options, quiet=True)
    assert tar.read_bytes() == before


def test_a_part_of_the_images_is_not_packed_among_them(image_folder: Path) -> None:
    options = ShardOptions(validation=0.5)  # into the folder's own name, train
    with pytest.raises(UserError, match=r"DESTINATION is .*/train; allowed: a place outside"):
        shard_corpus(image_folder, image_folder.parent, options=options, quiet=True)
    assert not list(image_folder.parent.rglob("*.tar"))


def test_tars_of_which_nothing_is_known_are_not_written_over(image_folder: Path, tars: Path) -> None:
    """Nor do they lie among the shards, where other libraries would read both."""
    (tars / ".notes.tmp").touch()
    for source in (image_folder, tars / "a.tar"):
        with pytest.raises(
            UserError, match=r"tars: holds a\.tar and no manifest; .*: give another destination"
        ):
            shard_corpus(source, tars, quiet=True)
    index_in_place(tars, quiet=True)
    assert (tars / ".notes.tmp").exists()
