"""Files fetched once per node, kept within a bound, shared by processes through locks. Knows no network."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK_SUFFIX = ".lock"


class Cache:
    """A folder of files below a limit; the least recently used ones leave.

    A file that leaves while it is open stays readable for those that have it open.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._folder = folder
        self._limit = limit_bytes

    def get(self, name: str, fetch: Callable[[Path], None], *, size: int) -> Path:
        """Return a file's path; the first process that asks fetches it, the others wait.

        Args:
            name: a relative path.
            fetch: writes the file to the path it is given.

        Raises:
            OSError: the disk is full or fails.
        """
        path = self._folder / name
        if self._touch(path):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}{_LOCK_SUFFIX}")):
            if not self._touch(path):
                self._make_room(size)
                try:
                    fetch(path)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    self._make_room(self._limit)  # others fill the disk as well: give up all that is idle
                    fetch(path)
        return path

    def _touch(self, path: Path) -> bool:
        """Mark a file as used now, and say whether it is there."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, size: int) -> None:
        """Remove files, the longest unused first, until `size` more bytes are within the limit."""
        with _locked(self._folder / f".cache{_LOCK_SUFFIX}"):
            files = sorted(
                ((stat.st_mtime, stat.st_size, path) for path, stat in self._files()), key=lambda f: f[0]
            )
            total = sum(used for _, used, _ in files)
            for _, used, path in files:
                if total + size <= self._limit:
                    break
                path.unlink(missing_ok=True)
                total -= used

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.rglob("*"):
            if path.name.endswith((_LOCK_SUFFIX, ".part", ".etag")):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process was quicker
            if path.is_file():
                yield path, stat


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among threads and processes; a process that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
