"""Open shards in a folder: few descriptors, positioned reads. Knows no samples.

Reads go by pread and not through a memory map: a file that is truncated under a map kills the process.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from data_pipeline.passing import PASSING, PAUSES_SECONDS
from data_pipeline.record import BadSampleError

T = TypeVar("T")
_OPEN_SHARDS = 512  # a lane's window is 4 shards: 60 lanes and their neighbours
# Of as many reads as shards are open: one in use is missed by so many once in 10 million times.
IDLE_TURNS = 16
_LOST_SECONDS = 60.0  # a file that failed for so long is not waited for again for each of its samples


class ShardFiles(Protocol):
    """Where a corpus' files are on this machine; by default they lie there.

    Attributes:
        remote: whether they are fetched.
    """

    remote: bool = False

    @property
    def fetching(self) -> str:
        """Name one that is just being fetched, and why it does not come; empty where none is."""
        return ""

    def path(self, name: str) -> Path:
        """Return a file's path, fetching it first where it is remote.

        Raises:
            BadSampleError: it cannot be had.
        """
        ...

    def prepare(self, names: list[str]) -> None:
        """Announce files that will be asked for soon, the most urgent first; here the system reads ahead."""
        return

    def renew(self, names: list[str]) -> bool:
        """Let go of copies that are damaged; say whether another reading may do better."""
        return False


class LocalFiles(ShardFiles):
    """A folder on a file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """Return the file's path, whether it exists or not."""
        return self._folder / name


class OpenShard:
    """One open file; it closes itself when its last reader has let go of it."""

    def __init__(self, path: Path, *, expected_bytes: int) -> None:
        """Open a shard.

        Raises:
            OSError: it is gone, or the file system failed.
            BadSampleError: its size is not the manifest's.
        """
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self._descriptor).st_size
        if size != expected_bytes:
            raise BadSampleError(f"{path}: has {size} bytes, the manifest says {expected_bytes}")

    @property
    def is_removed(self) -> bool:
        """Say whether the file has left its folder; its bytes leave the disk when it is closed."""
        return os.fstat(self._descriptor).st_nlink == 0

    def read(self, start: int, size: int) -> bytes:
        """Read bytes; fewer at the end of the file.

        Raises:
            OSError: the file system failed.
        """
        return os.pread(self._descriptor, size, start)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class OpenShards:
    """The files of a corpus, the most recently used shards kept open; safe to share by threads."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._turn = 0
        self._last_turn: dict[str, int] = {}
        self._lost_until: dict[str, float] = {}
        self._lock = threading.Lock()

    def read(self, name: str, start: int, size: int, *, expected_bytes: int) -> bytes:
        """Read a shard's bytes; fewer at its end.

        Raises:
            BadSampleError: it cannot be had, has another size than in the manifest, or keeps failing.
        """
        try:
            return self._get(name, expected_bytes).read(start, size)
        except OSError:  # a new descriptor may do better
            with self._lock:
                self._open.pop(name, None)
            return self.use(
                name, lambda path: OpenShard(path, expected_bytes=expected_bytes).read(start, size)
            )

    def renew(self, names: list[str]) -> bool:
        """Let go of damaged copies of files, open ones too; say whether another reading may do better."""
        if not self._files.renew(names):
            return False
        with self._lock:
            for name in names:
                self._open.pop(name, None)
        return True

    def use(self, name: str, use: Callable[[Path], T]) -> T:
        """Return what `use` makes of a file's path.

        It is fetched again if it leaves the cache in between, and tried again where the failure may pass.

        Raises:
            BadSampleError: it cannot be had, or the file system keeps failing.
        """
        for pause in (*PAUSES_SECONDS, None):
            path = self._files.path(name)
            try:
                return use(path)
            except OSError as error:
                if pause is not None and error.errno == errno.EMFILE and self._close_half():
                    continue
                passes = error.errno in PASSING or (self._files.remote and error.errno == errno.ENOENT)
                if pause is None or not passes or time.monotonic() < self._lost_until.get(name, 0.0):
                    self._lost_until[name] = time.monotonic() + _LOST_SECONDS
                    raise BadSampleError(f"{path}: {error.strerror}") from None
                time.sleep(pause)
        raise AssertionError("the last turn returns or raises")

    def _get(self, name: str, expected_bytes: int) -> OpenShard:
        with self._lock:
            self._turn += 1
            found = self._open.get(name)
            if found is not None:
                self._last_turn[name] = self._turn
                self._open.move_to_end(name)
                return found
        opened = self.use(name, partial(OpenShard, expected_bytes=expected_bytes))
        with self._lock:
            self._open[name] = opened
            self._last_turn[name] = self._turn
            self._close_idle()
        return opened

    def _close_half(self) -> bool:
        """Close the longest unused, where no more files may be open; say whether there were any."""
        with self._lock:
            closed = list(self._open)[: (len(self._open) + 1) // 2]
            for name in closed:
                del self._open[name], self._last_turn[name]
        return bool(closed)

    def _close_idle(self) -> None:
        """Close the longest unused, beyond the limit or if they left the cache: they fill the disk unseen."""
        for name in list(self._open):
            idle = self._turn - self._last_turn[name] > IDLE_TURNS * len(self._open)
            if len(self._open) <= _OPEN_SHARDS and not (self._files.remote and idle):
                break
            if len(self._open) > _OPEN_SHARDS or self._open[name].is_removed:
                del self._open[name], self._last_turn[name]
