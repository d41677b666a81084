"""Small files that exist wholly or not at all, over a crash of the process and of the machine; and folders.

overlayfs, on which containers live, renames no folder that is of an image's layer (EXDEV): a run that goes on
in there has some.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it exists wholly or not at all, and survives a power cut.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _becoming(path, temporary), temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write a large file under, which becomes `path` when all of it is there.

    What an earlier writer of it left behind when it was killed is removed.
    """
    for left in path.parent.glob(f".{path.stem}.*.tmp{path.suffix}"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with _becoming(path, temporary):
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # whoever wrote it may have made it for the owner alone
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _becoming(path: Path, temporary: Path) -> Iterator[None]:
    """Rename what is written under another name once it is, or leave nothing of it."""
    try:
        yield
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # of a folder that cannot be changed there is nothing to remove
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = None  # nobody knows that name
        name_file(error, path)
        raise
    sync_folder(path.parent)


def name_file(error: BaseException, path: Path) -> None:
    """Let an error say which file it was about: one of `write`, as on a full disk, does not know.

    One without a number has words of its own, which a name would take the place of.
    """
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_folder(folder: Path, target: Path) -> None:
    """Give a folder another name beside its own.

    Raises:
        OSError: it could not be moved.
    """
    if not _is_renamed(folder, target):
        shutil.copytree(folder, target)
        shutil.rmtree(folder)


def remove_folder(folder: Path, *, grave: Path) -> None:
    """Remove a folder, by the name `grave` beside it: whoever looks finds the whole or nothing.

    Raises:
        OSError: it could not be removed.
    """
    shutil.rmtree(grave if _is_renamed(folder, grave) else folder, ignore_errors=True)


def _is_renamed(folder: Path, target: Path) -> bool:
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def refresh_view(folder: Path) -> None:
    """Change a folder, so that its content is read anew: over NFS it may else be that of a minute ago."""
    probe = folder / f".look.{os.getpid()}"
    with suppress(OSError):  # what cannot be written can be read
        probe.touch()
        probe.unlink()
