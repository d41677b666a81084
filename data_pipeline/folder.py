"""Image files in a folder as a corpus, read directly: for trying out and for evaluation, not for clusters."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from coatnet.config import UserError
from coatnet.config.plain_text import check_class_names, number_of
from data_pipeline.decode import DecodeError, probe
from data_pipeline.decode.image_file import read_image_file
from data_pipeline.manifest import MANIFEST
from data_pipeline.record import BadSampleError, Record, SampleSource
from data_pipeline.shard_files import LocalFiles, OpenShards
from data_pipeline.suffixes import is_image_name, suffix_of

_NAMED = 5
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def list_image_folder(
    folder: Path, *, done: Callable[[int], None] | None = None
) -> tuple[list[str], list[tuple[str, int, int]]]:
    """List CLASS/…/file, classes and files sorted by name; hidden files are left out.

    Args:
        done: is told of so many more files listed, class by class.

    Returns:
        The classes, and (path relative to the folder, label, bytes) per file.

    Raises:
        UserError: there is no such folder, it holds no classes, or beside them images or links to nothing,
            which would be left out; a class holds no files, or a tar, or its name is not fit to be shown.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    classes = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if not classes:
        what = "files but no folders" if any(entry.is_file() for entry in entries) else "nothing"
        raise UserError(f"{folder}: holds {what}; expected a folder per class, {folder}/CLASS/image.jpg")
    _check_beside(folder, [entry for entry in entries if not entry.is_dir()])
    if _PARTS.issuperset(map(str.lower, classes)) and not _holds_images(folder / classes[0]):
        raise UserError(
            f"{folder}: its folders are parts of a data set: {', '.join(classes)}; give one of them"
        )
    check_class_names(classes, origin=str(folder))
    files: list[tuple[str, int, int]] = []
    for label, name in enumerate(classes):
        found = _files_of_class(folder, name)
        files += [(path, label, size) for path, size in found]
        if done is not None:
            done(len(found))
    return classes, files


def check_parts(words: Iterable[str], *, origin: str, remedy: str) -> None:
    """Refuse to make one corpus of what others train on and what they validate on.

    Raises:
        UserError: the words name several parts of a data set.
    """
    found = sorted(_PARTS.intersection(words))
    if len({word[:2] for word in found}) > 1:  # "valid" and "validation" are one
        raise UserError(f"{origin}: holds parts of a data set, {', '.join(found)}; {remedy}")


def is_image_folder(path: Path | str) -> bool:
    """Tell whether a path is a folder that is read as CLASS/file, for there are no shards in it."""
    folder = Path(path)
    return folder.is_dir() and not (folder / MANIFEST).exists() and not any(folder.glob("*.tar"))


def keep_out(name: str, written: Path | str, folders: Iterable[Path | str]) -> None:
    """Check that what is written lies in none of the folders of images, where it would become data.

    Raises:
        UserError: it does.
    """
    place = Path(written).resolve()
    for folder in folders:
        if is_image_folder(folder) and place.is_relative_to(Path(folder).resolve()):
            raise UserError(
                f"{name} is {written}; allowed: a place outside {folder}, whose folders are classes"
            )


class FolderCorpus(SampleSource):
    """Files of a folder as a corpus of one shard; they carry no checksums."""

    def __init__(
        self, folder: Path, *, classes: list[str], files: Sequence[tuple[str, int]], digest: str = ""
    ) -> None:
        """Take files as (path relative to the folder, label)."""
        self._folder, self._files = folder, files
        self._reader = OpenShards(LocalFiles(folder))
        self.classes, self.label_kind, self.digest = classes, "single", digest
        self.counts, self.samples = np.array([len(files)], dtype=np.int64), len(files)

    @classmethod
    def open(cls, folder: Path) -> FolderCorpus:
        """List an image folder, CLASS/…/file.

        Raises:
            UserError: as `list_image_folder` does.
        """
        classes, files = list_image_folder(folder)
        digest = xxhash.xxh3_64_hexdigest(repr((classes, files)).encode())
        return cls(folder, classes=classes, files=[(path, label) for path, label, _ in files], digest=digest)

    def read(self, shard: int, index: int) -> Record:
        """Read a file and its header.

        Raises:
            BadSampleError: it is gone, no usable image, or the file system keeps failing.
        """
        path, label = self._files[index]
        try:
            payload = self._reader.use(path, read_image_file)
            info = probe(payload)
        except DecodeError as error:
            raise BadSampleError(f"{self._folder / path}: {error}") from None
        return Record(payload, info.width, info.height, info.orientation, label)

    def class_counts(self, *, share: int = 0, shares: int = 1) -> NDArray[np.int64]:
        """Return how many of the files share, share + shares, … each class has."""
        labels = [label for _, label in self._files[share::shares]]
        return np.bincount(np.array(labels, dtype=np.int64), minlength=len(self.classes))

    def name(self, shard: int, index: int) -> str:
        """Return the file's path within the folder."""
        return self._files[index][0]


def _check_beside(folder: Path, entries: Sequence[os.DirEntry[str]]) -> None:
    """Refuse what lies beside the folders of classes and would be left out, and be missed too late.

    Raises:
        UserError: there are images, or links to nothing, which may have been classes.
    """
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    lost = next((entry.path for entry in visible if not os.path.exists(entry.path)), None)
    if lost is not None:
        raise UserError(f"{lost}: is a link to nothing; mend or remove it")
    found = [entry.name for entry in visible if is_image_name(entry.name)]
    if found:
        named = ", ".join([*found[:_NAMED], *["…"] * (len(found) > _NAMED)])
        what = number_of(len(found), "image lies", "images lie")
        raise UserError(
            f"{folder}: {what} beside the folders of classes: {named}; move what belongs to a class into its "
            "folder, and the rest away"
        )


def _holds_images(folder: Path) -> bool:
    """Tell whether images lie in a folder itself; beside folders only by name, since desktops leave files."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    deep = any(entry.is_dir() for entry in entries)
    return any(entry.is_file() and (not deep or is_image_name(entry.name)) for entry in entries)


def _size(entry: os.DirEntry[str]) -> int:
    """Return a file's bytes; 0 of what is none, or is out of reach: by a link in a circle, or behind a wall.

    Raises:
        OSError: the file system fails.
    """
    try:
        return entry.stat().st_size if entry.is_file() else 0
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EACCES):
            raise
        return 0


def _files_of_class(folder: Path, name: str) -> list[tuple[str, int]]:
    """List a class's files, at any depth, with their sizes.

    Raises:
        UserError: it has none, or a tar among them.
    """
    found = []
    pending = [name]
    while pending:
        below = pending.pop()
        for entry in os.scandir(folder / below):
            if entry.name.startswith("."):
                continue
            relative = f"{below}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(relative)
            else:  # a pipe or a link that leads nowhere is listed, too: reading it names it
                found.append((relative, _size(entry)))
    if not found:
        raise UserError(f"{folder / name}: a class without a file; remove the folder or fill it")
    found.sort()
    tar = next((folder / path for path, _ in found if suffix_of(path) == "tar"), None)
    if tar is not None:
        raise UserError(f"{tar}: a tar in a class; give {tar.parent} if it holds shards, or remove it")
    return found
