"""What may only be read, belongs to others or cannot be reached is told in a line, before any work."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from coatnet.config import UserError
from data_pipeline import folder as image_folders
from data_pipeline.config import CacheConfig
from data_pipeline.corpus import Corpus
from data_pipeline.folder import list_image_folder
from data_pipeline.remote.cache import Cache
from data_pipeline.remote.remote_files import open_cache
from data_pipeline.sharding import in_place
from data_pipeline.tools.exports import export_index

AsNobody = Callable[[], AbstractContextManager[None]]


def test_tars_of_a_folder_that_takes_no_files_are_not_listed_for_an_index_beside_them(
    shard_folder: Path, tmp_path: Path, as_nobody: AsNobody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing reads each header, of hundreds of tars over NFS."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for tar in shard_folder.glob("*.tar"):
        shutil.copy(tar, folder)
    monkeypatch.setattr(in_place, "list_source", None)
    folder.chmod(0o555)
    message = r"^tars: takes no files from you, where --in-place writes the index; give a DESTINATION"
    with as_nobody(), pytest.raises(UserError, match=message):
        in_place.index_in_place(Path("tars"), quiet=True)


@pytest.mark.parametrize(("library", "name"), [("wids", "wids.json"), ("dali", "shard-000000.idx")])
def test_an_export_beside_shards_that_may_only_be_read_names_the_file_that_was_asked_for(
    shard_folder: Path, tmp_path: Path, as_nobody: AsNobody, library: str, name: str
) -> None:
    shutil.copytree(shard_folder, tmp_path / "shards")
    (tmp_path / "shards").chmod(0o555)
    with as_nobody(), pytest.raises(PermissionError) as caught:
        export_index(Corpus.open(Path("shards")), Path("shards"), library)
    assert caught.value.filename == f"shards/{name}"


@pytest.mark.parametrize("mode", [0o750, 0o755, 0o1777])
def test_a_cache_of_another_user_is_refused_at_once_and_not_waited_for(
    tmp_path: Path, as_nobody: AsNobody, mode: int
) -> None:
    Cache(tmp_path / "cache", limit_bytes=1 << 20).get("x", Path.touch, size=1)  # type: ignore[arg-type]
    (tmp_path / "cache").chmod(mode)
    message = r"^data\.cache\.directory: cache: takes no files from you; give a folder of your own"
    with as_nobody(), pytest.raises(UserError, match=message):
        open_cache(CacheConfig(directory="cache"))


def test_an_image_behind_links_in_a_circle_or_a_closed_folder_is_listed_to_be_named_when_it_is_read(
    image_folder: Path, tmp_path: Path, as_nobody: AsNobody
) -> None:
    """One of them among millions ended the listing, where a link to nothing did not."""
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "closed").mkdir()
    (tmp_path / "images" / "ant" / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "images" / "ant" / "closed.jpg").symlink_to(tmp_path / "closed" / "x.jpg")
    (tmp_path / "closed").chmod(0)
    with as_nobody():
        files = list_image_folder(Path("images"))[1]
    (tmp_path / "closed").chmod(0o755)
    sizes = {path: size for path, _, size in files}
    assert sizes["ant/circle.jpg"] == sizes["ant/closed.jpg"] == 0
    assert len(files) == 2 + len(list_image_folder(image_folder)[1])


def test_a_file_system_that_fails_does_not_shorten_a_listing(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        name, path = "x.jpg", "x.jpg"

        def is_dir(self, **_: object) -> bool:
            return False

        def is_file(self) -> bool:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(image_folders.os, "scandir", lambda _: [Failing()])
    with pytest.raises(OSError, match="Stale"):
        image_folders._files_of_class(image_folder, "ant")
