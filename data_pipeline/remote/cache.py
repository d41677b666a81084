"""Files fetched once per node, kept within a bound, shared by processes through locks. Knows no network."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

_LOCK_SUFFIX = ".lock"
_LEDGER = f".cache{_LOCK_SUFFIX}"
_ABANDONED_SECONDS = 3600.0
# Nobody else gets room while a large folder is looked through: for so long all go by what was found, and add
# what they fetch.
_TRUSTED_SECONDS = 60.0
_SPARE = (
    32  # of the limit, this part is freed beyond what is needed: or a full cache is looked through each time
)
_FETCHED_AT_ONCE = 64  # with room for so many files nobody needs to know what others are fetching


class Cache:
    """A folder of files below a limit; the least recently used ones leave.

    A file that leaves while it is open stays readable for those that have it open.

    Attributes:
        folder: where they lie, shared by processes.
        limit_bytes: how much they may be together.
    """

    def __init__(self, folder: Path, *, limit_bytes: int | None) -> None:
        """Make the folder; without a limit half of its disk is one.

        Raises:
            OSError: it cannot be made, or belongs to another user.
        """
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        _refuse_of_others(folder)
        self.folder = folder
        self.limit_bytes = shutil.disk_usage(folder).total // 2 if limit_bytes is None else limit_bytes

    def get(self, name: str, fetch: Callable[[Path], None], *, size: int, ahead: bool = False) -> Path:
        """Return a file's path; the first process that asks fetches it, the others wait.

        Args:
            name: a relative path.
            fetch: writes the file to the path it is given.
            ahead: of its use; what others may need soon is not given up for it when the disk is full.

        Raises:
            OSError: the disk is full or fails.
        """
        path = self.folder / name
        if self._touch(path):
            return path
        with _locked(_lock_path(path)):
            if not self._touch(path):
                part = part_path(path)  # what a killed process had of it is gone on with
                missing = size - (part.stat().st_size if part.exists() else 0)
                try:
                    self._make_room(missing)
                    fetch(path)
                except OSError as error:
                    if ahead or not is_full(error):
                        raise
                    self._make_room(missing, all_idle=True)  # others fill the disk as well
                    fetch(path)
        return path

    def drop_unless(self, name: str, is_whole: Callable[[Path], bool]) -> bool:
        """Remove a file if it is there and not whole, and say whether it was removed."""
        path = self.folder / name
        with _locked(_lock_path(path)):
            if not path.exists() or is_whole(path):
                return False
            path.unlink(missing_ok=True)
            return True

    def disk_bytes(self) -> int:
        """Return how much could lie here, whatever the limit: what is free, and what does already."""
        return _free_bytes(self.folder) + sum(size for _, size, _ in self._files()[0])

    def _touch(self, path: Path) -> bool:
        """Mark a file as used now, and say whether it is there."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, size: int, *, all_idle: bool = False) -> None:
        """Remove files, the longest unused first, until `size` more bytes fit, by limit and disk; or all.

        Raises:
            OSError: the disk is full without all that may go.
        """
        with _locked(self.folder / _LEDGER) as ledger:
            found_at, used = _read(ledger)
            fits = used + size <= self.limit_bytes
            fits &= _free_bytes(self.folder) >= size * _FETCHED_AT_ONCE
            if all_idle or not fits or not 0.0 <= time.time() - found_at < _TRUSTED_SECONDS:
                found_at, used = time.time(), self._remove_idle(size, all_idle=all_idle)
            _write(ledger, found_at, used + size)

    def _remove_idle(self, size: int, *, all_idle: bool) -> int:
        """Look through the folder, make room, and return how many bytes lie there or will soon.

        The disk must have room for what others are fetching just now, too: about as much each.
        """
        kept, fetched = self._files()
        total, wanted = sum(used for _, used, _ in kept), size * (1 + fetched)
        limit = self.limit_bytes
        if total + size > limit:
            limit -= limit // _SPARE
        for _, used, path in sorted(kept):
            if total + size <= limit and _free_bytes(self.folder) >= wanted and not all_idle:
                break
            Path(path).unlink(missing_ok=True)
            total -= used
        if _free_bytes(self.folder) < size:  # not worth a transfer
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return total + size * fetched

    def _files(self) -> tuple[list[tuple[float, int, str]], int]:
        """Return (last use, bytes, path) of what may go, and how many files are being fetched.

        What has been half there for an hour was left by a killed process, and may go. What was not fetched
        by a cache belongs to whoever chose its folder, and stays.
        """
        kept, fetched = [], 0
        for folder, _, names in os.walk(self.folder):
            locks = set(names) - {_LEDGER}
            for name in names:
                if name.endswith(_LOCK_SUFFIX) or not _is_own(name, locks):
                    continue
                path = f"{folder}/{name}"
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    continue  # another process was quicker
                if name.endswith((".part", ".etag")) and time.time() - stat.st_mtime < _ABANDONED_SECONDS:
                    fetched += name.endswith(".part")
                elif S_ISREG(stat.st_mode):
                    kept.append((stat.st_mtime, stat.st_size, path))
        return kept, fetched


def _refuse_of_others(folder: Path) -> None:
    """Tell at once what waiting does not mend: every reader of a cache writes to it, locks and times of use.

    Raises:
        OSError: nothing may be written here, or another user has begun to.
    """
    for path, mode in ((folder, os.W_OK | os.X_OK), (folder / _LEDGER, os.R_OK | os.W_OK)):
        if os.path.exists(path) and not os.access(path, mode, effective_ids=True):
            reason = "takes no files from you; give a folder of your own"
            raise PermissionError(errno.EACCES, reason, str(folder))


def _read(ledger: int) -> tuple[float, int]:
    """Return when the folder was looked through, and what is there since; long ago if that is not known."""
    try:
        found_at, used = os.pread(ledger, 64, 0).split()
        return float(found_at), int(used)
    except ValueError:
        return 0.0, 0


def _write(ledger: int, found_at: float, used: int) -> None:
    os.ftruncate(ledger, 0)  # a full disk takes no new line; then nothing is known
    with suppress(OSError):
        os.pwrite(ledger, f"{found_at!r} {used}".encode(), 0)  # rounded up it would lie in the future


def part_path(path: Path) -> Path:
    """Return where a file is kept while it is fetched: by one node alone, where locks do not reach others."""
    return path.with_name(f"{path.name}.{os.uname().nodename}.part")


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_LOCK_SUFFIX}")


def _is_own(name: str, locks: set[str]) -> bool:
    """Say whether a lock of this file, or of the one that it is a part of, was ever taken: it stays."""
    while f".{name}{_LOCK_SUFFIX}" not in locks and name:
        name = name.rpartition(".")[0]
    return bool(name)


def is_full(error: OSError) -> bool:
    """Say whether an error means that the disk, or its owner's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a lock among threads and processes, by a descriptor of its file; who dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
