"""One file from a server to the disk: resumed, timed, verified. Knows no cache and no samples.

What arrives is believed only when its size and hash are the manifest's. An entity that changes while it is
fetched in parts is noticed by `If-Range` and fetched from its beginning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import urllib3

from coatnet.config.plain_text import plain
from data_pipeline.index import size_and_hash
from data_pipeline.remote.address import without_secrets
from data_pipeline.remote.cache import is_full, part_path
from data_pipeline.remote.request import (
    NOTHING_BEHIND,
    Attempts,
    DownloadError,
    Patience,
    Retry,
    Wrong,
    ask,
    chunks,
    number_of,
)

_WAITING_SAID_AT = 3  # failures in a row
_MOST_BYTES_UNTOLD = 1 << 30


@dataclass(frozen=True)
class Expected:
    """What a file must be: its size in bytes if known, and the hash in its manifest (xxh3, 128 bit)."""

    xxh3: str
    size: int | None = None


def download(
    url: str,
    target: Path,
    expected: Expected,
    *,
    patience: Patience,
    failed: Callable[[str], None] = lambda reason: None,
) -> None:
    """Fetch a file; what a broken or killed attempt left in its `part_path` is gone on with.

    Args:
        url, target: from where and to where.
        expected: what it must be.
        patience: how long it may take.
        failed: is told why an attempt failed that others follow.

    Raises:
        DownloadError: it is not there, or is not what the manifest says.
        Unreachable: the server did not answer, or nothing came through.
        OSError: the disk is full or fails.
    """
    part = part_path(target)
    attempts = Attempts(url, patience)
    while True:
        had = _size(part)
        try:
            _fetch_rest(url, part, expected, patience)
            _verify(part, expected)
            part.replace(target)
            _tag_path(part).unlink(missing_ok=True)
            return
        except Retry as error:
            failed(str(error))
            attempts.failed(error, gained=_size(part) > had)
        except OSError as error:
            if is_full(error):
                part.unlink(missing_ok=True)  # it would keep the room that another file needs now
            raise


def fetch_bytes(url: str, *, limit: int, patience: Patience) -> bytes:
    """Fetch a small file into memory.

    Raises:
        DownloadError: it is not there, or is too large.
        Unreachable: the server did not answer, or nothing came through.
    """
    attempts = Attempts(url, patience)
    while True:
        try:
            content = bytearray()
            with closing(ask(url, 0, "", patience)) as response:
                for chunk in chunks(response, patience):
                    content += chunk
                    if len(content) > limit:
                        raise DownloadError(f"{without_secrets(url)}: longer than {limit} bytes")
                total = _total_bytes(response, 0) if response.status == 206 else None
            if total not in (None, len(content)):
                raise Wrong(f"the server sends {len(content)} of {total} bytes, though all was asked for")
            return bytes(content)
        except Retry as error:
            attempts.failed(error)
            if attempts.failures == _WAITING_SAID_AT:
                print(f"waiting for {without_secrets(url)}: {error}", file=sys.stderr, flush=True)


def _fetch_rest(url: str, part: Path, expected: Expected, patience: Patience) -> None:
    """Append what is missing to the partial file."""
    have, most = _size(part), expected.size or _MOST_BYTES_UNTOLD
    if expected.size is not None and have >= expected.size:
        if have == expected.size:
            return
        have = 0
    tag = _tag_path(part).read_text() if have and _tag_path(part).exists() else ""
    with closing(ask(url, have, tag, patience)) as response:
        start = have if response.status == 206 else 0  # some send a part though all was asked for
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if response.status == NOTHING_BEHIND:  # we have all of it, or too much, and do not know which
            part.unlink()
            raise Retry("the server has nothing behind what had come")
        if start and encoded:  # it counts the bytes of something else
            part.unlink()
            raise Retry("the server goes on in the middle of what it compressed")
        total = None if encoded else _total_bytes(response, start)
        if expected.size is not None and total not in (None, expected.size):
            raise Wrong(f"the server has {total} bytes, the manifest says {expected.size}")
        tag = response.headers.get("ETag", "")
        _tag_path(part).write_text("" if tag.startswith("W/") else tag)  # a weak one promises no equal bytes
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in chunks(response, patience):
                if file.tell() + len(chunk) > most:  # of no told length, or compressed: it may never end
                    part.unlink()
                    raise Wrong(f"the server sends more than {most} bytes")
                file.write(chunk)
            got = file.tell()
    wanted = expected.size if expected.size is not None else total
    if wanted is not None and got != wanted:
        raise Retry(f"the connection ended at byte {got} of {wanted}")


def _total_bytes(response: urllib3.BaseHTTPResponse, start: int) -> int | None:
    """Return the length of the whole entity that a response announces."""
    if response.status == 206:
        first, _, total = response.headers.get("Content-Range", "").partition("/")
        if not first.startswith(f"bytes {start}-"):
            raise Retry(f"asked for bytes from {start} on, got {plain(first) or 'no range'}")
        return number_of(total)
    return number_of(response.headers.get("Content-Length", ""))


def _verify(part: Path, expected: Expected) -> None:
    """Compare with the manifest; what differs is thrown away, since no resuming can mend it."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    if size_and_hash(part)[1] != expected.xxh3:
        part.unlink()
        raise Wrong("its content is not what the manifest says")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")
