"""Images read from their folder: what a file system's failures mean for them."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coatnet.config import UserError
from data_pipeline import folder, passing
from data_pipeline.folder import FolderCorpus
from data_pipeline.record import BadSampleError


def fail(monkeypatch: pytest.MonkeyPatch, number: int, *, times: int) -> list[OSError]:
    """Let so many readings of a file fail; return the failures to come."""
    failures = [OSError(number, os.strerror(number))] * times
    read: Callable[[Path], bytes] = folder.read_image_file

    def read_or_fail(path: Path) -> bytes:
        if failures:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(folder, "read_image_file", read_or_fail)
    return failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("times", [1, 3])
def test_a_file_system_that_fails_for_a_moment_costs_no_image(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], number: int, times: int
) -> None:
    failures = fail(monkeypatch, number, times=times)
    corpus = FolderCorpus.open(image_folder)
    assert bytes(corpus.read(0, 0).payload) == (image_folder / corpus.name(0, 0)).read_bytes()
    assert not failures and len(pauses) == times


def test_an_image_that_the_disk_cannot_read_is_waited_for_once(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    fail(monkeypatch, errno.EIO, times=10_000)
    corpus = FolderCorpus.open(image_folder)
    for _ in range(3):
        with pytest.raises(BadSampleError, match=r"ant/000\.jpg: Input/output error"):
            corpus.read(0, 0)
    assert len(pauses) == 3


def test_an_image_that_is_gone_is_bad_at_once(
    image_folder: Path, tmp_path: Path, pauses: list[float]
) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.jpg").write_bytes((image_folder / "ant" / "000.jpg").read_bytes())
    corpus = FolderCorpus.open(tmp_path)
    (tmp_path / "ant" / "0.jpg").unlink()
    with pytest.raises(BadSampleError, match="No such file"):
        corpus.read(0, 0)
    assert not pauses


def test_a_file_that_is_no_image_is_a_bad_sample_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.jpg").write_text("no image")
    with pytest.raises(BadSampleError, match=r"ant/0\.jpg: "):
        FolderCorpus.open(tmp_path).read(0, 0)


def test_where_no_more_files_may_be_open_an_image_waits_until_one_is_closed(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = FolderCorpus.open(image_folder)
    expected = bytes(corpus.read(0, 0).payload)
    held = os.dup(0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    paused: list[float] = []

    def close_one(seconds: float) -> None:
        paused.append(seconds)
        os.close(held)

    monkeypatch.setattr(passing.time, "sleep", close_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, limits[1]))
    try:
        found = bytes(corpus.read(0, 0).payload)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == expected and len(paused) == 1


def test_a_class_that_is_a_link_to_nothing_is_not_left_out_in_silence(
    image_folder: Path, tmp_path: Path
) -> None:
    """As in a choice of classes by links, where the disk of one of them is not mounted."""
    (tmp_path / "ant").symlink_to(image_folder / "ant")
    (tmp_path / ".bee").symlink_to(tmp_path / "nowhere")
    assert FolderCorpus.open(tmp_path).classes == ["ant"]
    (tmp_path / "bee").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="bee: is a link to nothing; mend or remove it"):
        FolderCorpus.open(tmp_path)


@pytest.mark.parametrize("train", ["train", "Train"])
@pytest.mark.parametrize("beside", [".DS_Store", "Thumbs.db", "list.txt"])
def test_what_a_desktop_leaves_in_parts_of_a_data_set_makes_no_classes_of_them(
    image_folder: Path, tmp_path: Path, train: str, beside: str
) -> None:
    for part in (train, "val"):
        shutil.copytree(image_folder, tmp_path / part, ignore=shutil.ignore_patterns("*[1-9].jpg"))
        (tmp_path / part / beside).touch()
    with pytest.raises(UserError, match=f"its folders are parts of a data set: {train}, val; give one"):
        FolderCorpus.open(tmp_path)


def test_the_folder_above_some_shards_is_no_folder_of_classes(shard_folder: Path, tmp_path: Path) -> None:
    """As where `--validation` made train and validation, and their folder is given."""
    for part in ("train", "validation"):
        shutil.copytree(shard_folder, tmp_path / part)
    with pytest.raises(UserError, match=r"train/shard-.*\.tar: a tar in a class; give .*/train if it holds"):
        FolderCorpus.open(tmp_path)


def test_classes_that_are_called_like_parts_and_hold_images_are_classes(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder / "ant", tmp_path / "train")
    shutil.copytree(image_folder, tmp_path / "train" / "more")
    assert FolderCorpus.open(tmp_path).classes == ["train"]


def test_a_folder_whose_images_have_changed_is_another_corpus(image_folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(image_folder, tmp_path / "images"))
    before = FolderCorpus.open(place).digest
    assert before == FolderCorpus.open(image_folder).digest
    digests = {before}
    changes: list[Callable[[], object]] = [
        (place / "ant" / ".hidden.jpg").touch,
        lambda: (place / "ant" / "000.jpg").rename(place / "ant" / "moved.jpg"),
        lambda: (place / "ant" / "moved.jpg").write_bytes(b"of another size"),
        lambda: (place / "ant" / "moved.jpg").rename(place / "bee" / "moved.jpg"),
        (place / "bee" / "moved.jpg").unlink,
    ]
    for number, change in enumerate(changes):
        change()
        digests.add(FolderCorpus.open(place).digest)
        assert len(digests) == 1 + number, "what is hidden does not count, all else does"


def test_hidden_folders_and_notes_beside_the_classes_are_neither_classes_nor_images(
    image_folder: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(image_folder, tmp_path / "images"))
    for hidden in (place / ".cache", place / "ant" / ".thumbnails"):
        shutil.copytree(image_folder / "bee", hidden)
    (place / "notes.txt").touch()
    assert FolderCorpus.open(place).digest == FolderCorpus.open(image_folder).digest


def test_a_folder_with_shards_or_tars_is_no_folder_of_images(tmp_path: Path, image_folder: Path) -> None:
    assert folder.is_image_folder(image_folder)
    assert not folder.is_image_folder(image_folder / "ant" / "000.jpg")
    for name in ("manifest.json", "a.tar"):
        (tmp_path / name).touch()
        assert not folder.is_image_folder(tmp_path)
        (tmp_path / name).rename(tmp_path / "notes")
        assert folder.is_image_folder(tmp_path)
    with pytest.raises(UserError, match="holds files but no folders; expected a folder per class"):
        FolderCorpus.open(tmp_path)
