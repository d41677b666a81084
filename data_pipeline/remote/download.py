"""One file from a server to the disk: resumed, timed, verified. Knows no cache and no samples.

What arrives is believed only when its size and hash are the manifest's. An entity that changes while it is
fetched in parts is noticed by `If-Range` and fetched from its beginning.
"""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import urllib3
import xxhash
from urllib3.exceptions import HTTPError

from data_pipeline.remote.address import to_http, without_secrets
from data_pipeline.remote.cache import is_full

_CHUNK_BYTES = 1 << 18
_LEAST_BYTES_PER_SECOND = 2_000  # a slow drip keeps a socket alive for ever
_CONNECT_SECONDS = 8.0
_FIRST_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.25, 20.0
_FINAL_STATUS = (400, 404, 405, 410)
_NOTHING_BEHIND = 416
_REDIRECTS = 3


class DownloadError(Exception):
    """A file could not be had; the message names it and the last reason."""


class _Retry(Exception):
    """This attempt failed; another may not. `after_seconds` is what the server asked for."""

    def __init__(self, reason: str, *, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


@dataclass(frozen=True)
class Patience:
    """How long a transfer may take.

    Attributes:
        stall_seconds: without a byte, or below 2 kB/s, for so long: given up, and resumed where it was.
        attempts: in a row without a single new byte.
        pause: waits; tests replace it.
    """

    stall_seconds: float = 8.0
    attempts: int = 8
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Expected:
    """What a file must be: its size in bytes if known, and the hash in its manifest (xxh3, 128 bit)."""

    xxh3: str
    size: int | None = None


_POOL = urllib3.PoolManager(maxsize=16, block=False)


def download(url: str, target: Path, expected: Expected, *, patience: Patience) -> None:
    """Fetch a file; what a broken or killed attempt left in `target.part` is gone on with.

    Raises:
        DownloadError: it is not there, is not what the manifest says, or never came through.
        OSError: the disk is full or fails.
    """
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, expected, patience)
            _verify(part, expected)
            part.replace(target)
            part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
            return
        except _Retry as error:
            gained = part.exists() and part.stat().st_size > had
            failures = 1 if gained else failures + 1
            if failures >= patience.attempts:
                raise DownloadError(
                    f"{without_secrets(url)}: {error}, after {failures} attempts without progress"
                ) from None
            patience.pause(error.after_seconds + backoff_seconds(failures))
        except OSError as error:
            if is_full(error):
                part.unlink(missing_ok=True)  # it would keep the room that another file needs now
            raise


def fetch_bytes(url: str, *, limit: int, patience: Patience) -> bytes:
    """Fetch a small file into memory.

    Raises:
        DownloadError: it is not there, is too large, or never came through.
    """
    for failures in range(1, patience.attempts + 1):
        try:
            content = bytearray()
            with closing(_open(url, 0, "", patience)) as response:
                for chunk in _chunks(response, patience):
                    content += chunk
                    if len(content) > limit:
                        raise DownloadError(f"{without_secrets(url)}: longer than {limit} bytes")
            return bytes(content)
        except _Retry as error:
            if failures == patience.attempts:
                raise DownloadError(f"{without_secrets(url)}: {error}, after {failures} attempts") from None
            patience.pause(error.after_seconds + backoff_seconds(failures))
    raise AssertionError("a last attempt returns or raises")


def backoff_seconds(failures: int) -> float:
    """Return how long to wait: doubling, with jitter, so that ranks do not return in step.

    It comes on top of what a server asks for, which it asks of all of them alike.
    """
    most = min(_MOST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0**failures)
    return random.uniform(most / 2, most)


def _fetch_rest(url: str, part: Path, expected: Expected, patience: Patience) -> None:
    """Append what is missing to the partial file."""
    tag_file = part.with_name(f"{part.name}.etag")
    have = part.stat().st_size if part.exists() else 0
    if expected.size is not None and have >= expected.size:
        if have == expected.size:
            return
        have = 0
    tag = tag_file.read_text() if have and tag_file.exists() else ""
    with closing(_open(url, have, tag, patience)) as response:
        if response.status == _NOTHING_BEHIND:  # we have all of it, or too much, and do not know which
            part.unlink()
            raise _Retry("the server has nothing behind what had come")
        resumed = response.status == 206
        start = have if resumed else 0
        total = _total_bytes(response, start)
        if expected.size is not None and total not in (None, expected.size):
            raise _Retry(f"the server has {total} bytes, the manifest says {expected.size}")
        tag = response.headers.get("ETag", "")
        tag_file.write_text("" if tag.startswith("W/") else tag)  # a weak one promises no equal bytes
        with part.open("r+b" if resumed else "wb") as file:
            file.seek(start)
            for chunk in _chunks(response, patience):
                file.write(chunk)
            got = file.tell()
    wanted = expected.size if expected.size is not None else total
    if wanted is not None and got != wanted:
        raise _Retry(f"the connection ended at byte {got} of {wanted}")


def _open(url: str, start: int, tag: str, patience: Patience) -> urllib3.BaseHTTPResponse:
    """Ask for a file from a byte on, if it is still the same entity; without a tag the hash will tell."""
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        headers |= {"If-Range": tag} if tag else {}
    try:
        response = _POOL.request(
            "GET",
            to_http(url),
            headers=headers,
            preload_content=False,
            retries=urllib3.Retry(
                total=_REDIRECTS,
                connect=0,
                read=0,
                status=0,
                other=0,
                redirect=_REDIRECTS,
                respect_retry_after_header=False,  # else an error that tells no time
            ),
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=patience.stall_seconds),
        )
    except HTTPError as error:
        distrust = _distrust(error)
        if distrust:
            raise DownloadError(
                f"{without_secrets(url)}: its certificate is not trusted: {distrust}; the environment's "
                "SSL_CERT_FILE names authorities of one's own"
            ) from None
        raise _Retry(f"no answer: {_brief(error)}") from None
    if response.status in (200, 206) or (start and response.status == _NOTHING_BEHIND):
        return response
    status, after = response.status, response.headers.get("Retry-After", "")
    response.close()
    if status in _FINAL_STATUS:
        raise DownloadError(f"{without_secrets(url)}: the server answers {status}")
    raise _Retry(f"the server answers {status}", after_seconds=_seconds(after))


def _chunks(response: urllib3.BaseHTTPResponse, patience: Patience) -> Iterator[bytes]:
    """Yield what arrives, until the end, a stall or a drip."""
    began, received = time.monotonic(), 0
    try:
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk
            received += len(chunk)
            waited = time.monotonic() - began
            if waited > patience.stall_seconds:
                if received < _LEAST_BYTES_PER_SECOND * waited:
                    raise _Retry(f"only {received / waited:,.0f} bytes a second")
                began, received = time.monotonic(), 0
    except (HTTPError, OSError) as error:
        raise _Retry(f"the transfer broke off: {_brief(error)}") from None


def _total_bytes(response: urllib3.BaseHTTPResponse, start: int) -> int | None:
    """Return the length of the whole entity that a response announces."""
    if response.status == 206:
        first, _, total = response.headers.get("Content-Range", "").partition("/")
        if not first.startswith(f"bytes {start}-"):
            raise _Retry(f"asked for bytes from {start} on, got {first or 'no range'}")
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _verify(part: Path, expected: Expected) -> None:
    """Compare with the manifest; what differs is thrown away, since no resuming can mend it."""
    hasher = xxhash.xxh3_128()
    with part.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
        os.fsync(file.fileno())
    if hasher.hexdigest() != expected.xxh3:
        part.unlink()
        raise _Retry("its content is not what the manifest says")


def _seconds(text: str) -> float:
    return min(float(text), _MOST_BACKOFF_SECONDS) if text.isdigit() else 0.0


def _distrust(error: Exception) -> str:
    """Return why a certificate is not trusted, which no second try changes; empty for other errors."""
    cause: object = getattr(error, "reason", error)
    while isinstance(cause, Exception) and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.args[0] if cause.args else None
    return cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else ""


def _brief(error: Exception) -> str:
    """Return an error's kind alone: its text holds the URL, which may hold a signature."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
