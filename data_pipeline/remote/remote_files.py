"""The files of a remote corpus: asked for by name, had from the cache, fetched ahead by a few threads."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from coatnet.config import UserError
from coatnet.runtime.endings import Unreachable
from data_pipeline.config import CacheConfig, parse_bytes
from data_pipeline.index import size_and_hash
from data_pipeline.manifest import MANIFEST, Manifest, parse_manifest
from data_pipeline.record import LostSampleError
from data_pipeline.remote.address import check_url, join, without_secrets
from data_pipeline.remote.cache import Cache, is_full
from data_pipeline.remote.download import Expected, download, fetch_bytes
from data_pipeline.remote.request import DownloadError, Patience, backoff_seconds

_FETCHERS = 4
_MAX_MANIFEST_BYTES = 1 << 28
_LOST_SECONDS = 60.0  # a lost shard is not asked for again for each of its samples
_CACHE_TRIES = 8  # three quarters of a minute
_INDEX_BYTES = 1 << 20  # an index's size is not in the manifest; this is room to make for it


class RemoteFiles:
    """A folder behind a URL, as `ShardFiles`."""

    remote = True

    def __init__(self, url: str, manifest: Manifest, cache: Cache, *, patience: Patience) -> None:
        self._url, self._cache, self._patience = url, cache, patience
        self._digest = manifest.digest()
        self._expected = {
            name: Expected(xxh3, shard.bytes if name == shard.name else None)
            for shard in manifest.shards
            for name, xxh3 in shard.files.items()
        }
        self._lost: dict[str, tuple[float, Exception]] = {}
        self._under_way: dict[int, str] = {}  # by thread
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    def path(self, name: str) -> Path:
        """Return a file's path in the cache, fetching it first if it is not there.

        A cache that fails says nothing of the sample. It is waited for: other ranks give room back to a full
        disk, and what was cleared away is fetched again.

        Raises:
            LostSampleError: the server has no such file, or another one.
            UserError: the cache keeps failing.
            Unreachable: the server does not answer.
        """
        for failures in range(1, _CACHE_TRIES + 1):
            try:
                return self._cached(name)
            except DownloadError as error:
                raise LostSampleError(str(error)) from None
            except OSError as error:
                reason = error
                if failures < _CACHE_TRIES:
                    with self._saying(f"{name}: {self._cache.folder}: {reason.strerror}"):
                        self._patience.pause(backoff_seconds(failures))
        if is_full(reason):
            raise UserError(
                f"{name}: no room on the disk of data.cache.directory, {self._cache.folder}, without what "
                "idles there; give it another place, or lower data.cache.ahead_shards, data.lanes or "
                "data.window"
            )
        raise UserError(
            f"{name}: data.cache.directory, {self._cache.folder}: {reason.strerror}; give it a place on the "
            "node's own disk"
        )

    def _cached(self, name: str, *, ahead: bool = False) -> Path:
        self._refuse_lost(name)
        size, fetch = self._expected[name].size or _INDEX_BYTES, partial(self._fetch, name)
        return self._cache.get(f"{self._digest}/{name}", fetch, size=size, ahead=ahead)

    def _fetch(self, name: str, target: Path) -> None:
        """Fetch a file while the cache holds its lock: those who wait for it then see that it is lost."""
        self._refuse_lost(name)
        url, expected = join(self._url, name), self._expected[name]
        shown = without_secrets(url)
        with self._saying(shown) as say:
            try:
                download(
                    url,
                    target,
                    expected,
                    patience=self._patience,
                    failed=lambda reason: say(f"{shown}: {reason}"),
                )
            except (DownloadError, Unreachable) as error:
                self._lost[name] = (time.monotonic() + _LOST_SECONDS, error)
                raise

    def _refuse_lost(self, name: str) -> None:
        """Refuse what was just found to be lost, or out of reach: whoever waited for it waits no longer.

        Raises:
            DownloadError: the server has no such file, or another one.
            Unreachable: the server did not answer for long.
        """
        until, reason = self._lost.get(name, (0.0, None))
        if reason is not None and time.monotonic() < until:
            raise type(reason)(str(reason))

    @contextmanager
    def _saying(self, text: str) -> Iterator[Callable[[str], None]]:
        """Let `fetching` say something of this thread, and what the block says next."""
        thread = threading.get_ident()

        def say(text: str) -> None:
            self._under_way[thread] = text

        say(text)
        try:
            yield say
        finally:
            del self._under_way[thread]

    @property
    def fetching(self) -> str:
        """Name the file that has been fetched for the longest, and why it does not come; empty for none."""
        return next(iter(self._under_way.copy().values()), "")

    def prepare(self, names: list[str]) -> None:
        """Fetch files ahead, in the background, in this order."""
        with self._starting:
            if not self._threads:
                # daemons: leaving the program must not wait for a download; what is half there is resumed
                self._threads = [
                    threading.Thread(target=self._fetch_ahead, daemon=True, name=f"fetch-{number}")
                    for number in range(_FETCHERS)
                ]
                for thread in self._threads:
                    thread.start()
        for name in names:
            self._queue.put(name)

    def renew(self, names: list[str]) -> bool:
        """Throw away copies that are no longer what the manifest says; they are fetched when next asked for.

        True in any case: another thread, or another rank, may have thrown away what was read.
        """
        for name in names:
            is_whole = partial(_is_whole, expected=self._expected[name])
            if self._cache.drop_unless(f"{self._digest}/{name}", is_whole):
                print(f"{name}: was damaged in the cache, {self._cache.folder}", file=sys.stderr, flush=True)
        return True

    def _fetch_ahead(self) -> None:
        while True:
            with suppress(Exception):  # the reader will meet it, and name it
                self._cached(self._queue.get(), ahead=True)


def open_remote(url: str, cache: CacheConfig) -> tuple[Manifest, RemoteFiles]:
    """Fetch a remote corpus' manifest.

    Raises:
        UserError: no manifest there, or a URL that is not allowed.
    """
    check_url(url)
    patience = Patience(stall_seconds=cache.stall_seconds, attempts=cache.attempts)
    address = join(url, MANIFEST)
    try:
        content = fetch_bytes(address, limit=_MAX_MANIFEST_BYTES, patience=patience)
    except DownloadError as error:
        raise UserError(f"{error}; a remote corpus is a folder with a {MANIFEST}") from None
    manifest = parse_manifest(content, origin=without_secrets(address))
    return manifest, RemoteFiles(url, manifest, open_cache(cache), patience=patience)


def open_cache(config: CacheConfig) -> Cache:
    """Return the node's cache, its folder made.

    Raises:
        UserError: it cannot be made.
    """
    usual = os.path.join(tempfile.gettempdir(), f"coatnet-shards-{os.getuid()}")
    limit = None if config.limit is None else parse_bytes(config.limit)
    try:
        return Cache(Path(config.directory or usual), limit_bytes=limit)
    except OSError as error:
        raise UserError(
            f"data.cache.directory: {error.filename or config.directory or usual}: {error.strerror}"
        ) from None


def _is_whole(path: Path, expected: Expected) -> bool:
    try:
        return size_and_hash(path)[1] == expected.xxh3
    except OSError:  # what its disk cannot read any more is damaged, too
        return False
