"""One request for a file over http, https or s3, and what its failures mean. Writes no file.

A server that is away says nothing of the file: that is another error than a file which is not there, or not
what it should be.
"""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

from coatnet.runtime.endings import Unreachable
from data_pipeline.remote.address import SigningError, forget_credentials, to_http, without_secrets
from data_pipeline.remote.deadline import POOLS

NOTHING_BEHIND = 416
_CHUNK_BYTES = 1 << 18
_LEAST_BYTES_PER_SECOND = 2_000  # a slow drip keeps a socket alive for ever
_CONNECT_SECONDS = 8.0
_FIRST_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.25, 20.0
_FINAL_STATUS = (400, 404, 405, 410)
_REFUSED_STATUS = (401, 403)  # S3 says so of what is not there, too, to those who may not list the bucket
_EXPIRED_CODES = ("ExpiredToken", "TokenRefreshRequired")  # of 400 or 403: they say nothing of the file
_REDIRECTS = 3
_WRONG_TIMES = 4  # a file may just be being replaced, or credentials renewed
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")  # S3's: RequestTimeTooSkewed, AccessDenied, …


class DownloadError(Exception):
    """A file is not there, or is not what the manifest says; the message names it and the last reason."""


class Retry(Exception):
    """This attempt failed; another may not. `after_seconds` is what the server asked for."""

    def __init__(self, reason: str, *, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds


class Wrong(Retry):
    """The server answered, but with something else than the manifest says, or refused to: it is not away."""


@dataclass(frozen=True)
class Patience:
    """How long a transfer may take.

    Attributes:
        stall_seconds: without a whole header, without a byte, or below 2 kB/s for so long: given up, and
            resumed where it was.
        attempts: in a row without a single new byte.
        pause: waits; tests replace it.
    """

    stall_seconds: float = 8.0
    attempts: int = 40
    pause: Callable[[float], None] = time.sleep


class Attempts:
    """Counts what failed, and waits before the next attempt."""

    def __init__(self, url: str, patience: Patience) -> None:
        self._name, self._patience = without_secrets(url), patience
        self._wrong = 0
        self.failures = 0

    def failed(self, error: Retry, *, gained: bool = False) -> None:
        """Count a failure and wait; one that brought new bytes begins the count anew.

        Raises:
            DownloadError: the server has another file, or refuses it.
            Unreachable: it was asked often enough.
        """
        self.failures = 1 if gained else self.failures + 1
        self._wrong += isinstance(error, Wrong)
        exhausted = self.failures >= self._patience.attempts
        if isinstance(error, Wrong) and (exhausted or self._wrong >= _WRONG_TIMES):
            raise DownloadError(f"{self._name}: {error}") from None
        if exhausted:
            raise Unreachable(
                f"{self._name}: {error}, after {self.failures} attempts without progress"
            ) from None
        self._patience.pause(error.after_seconds + backoff_seconds(self.failures))


def backoff_seconds(failures: int) -> float:
    """Return how long to wait: doubling, with jitter, so that ranks do not return in step.

    It comes on top of what a server asks for, which it asks of all of them alike.
    """
    most = min(_MOST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0**failures)
    return random.uniform(most / 2, most)


def ask(url: str, start: int, tag: str, patience: Patience) -> urllib3.BaseHTTPResponse:
    """Ask for a file from a byte on, if it is still the same entity; without a tag the hash will tell."""
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        headers |= {"If-Range": tag} if tag else {}
    try:
        response = _send(to_http(url), headers, stall_seconds=patience.stall_seconds)
    except HTTPError as error:
        distrust = _distrust(error)
        if distrust:
            raise DownloadError(
                f"{without_secrets(url)}: its certificate is not trusted: {distrust}; the environment's "
                "SSL_CERT_FILE names authorities of one's own"
            ) from None
        raise Retry(f"no answer: {_brief(error)}") from None
    except SigningError as error:
        raise Retry(str(error)) from None
    except ValueError:  # a redirect to something that is no URL
        raise Retry("no answer: a redirect that makes no sense") from None
    if response.status in (200, 206) or (start and response.status == NOTHING_BEHIND):
        return response
    with closing(response):
        code = _error_code(response)
        after = _seconds(response.headers.get("Retry-After", ""))
    answer = f"the server answers {response.status}{f' ({code})' if code else ''}"
    if code in _EXPIRED_CODES:
        forget_credentials()
        raise Retry(answer, after_seconds=after)
    if response.status in _FINAL_STATUS:
        raise DownloadError(f"{without_secrets(url)}: {answer}")
    raise (Wrong if response.status in _REFUSED_STATUS else Retry)(answer, after_seconds=after)


def _send(address: str, headers: Mapping[str, str], *, stall_seconds: float) -> urllib3.BaseHTTPResponse:
    """Follow redirects and nothing else: what failed is for the caller to try again."""
    retries = urllib3.Retry(
        total=_REDIRECTS,
        connect=0,
        read=0,
        status=0,
        other=0,
        redirect=_REDIRECTS,
        respect_retry_after_header=False,  # else an error that tells no time
    )
    return _pool(_proxy_for(address)).request(
        "GET",
        address,
        headers=headers,
        preload_content=False,
        retries=retries,
        timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=stall_seconds),
    )


@lru_cache
def _pool(proxy: str | None) -> urllib3.PoolManager:
    pool = urllib3.PoolManager(maxsize=16, block=False)
    if proxy is not None:
        auth = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=unquote(auth)) if auth else None
        pool = urllib3.ProxyManager(proxy, maxsize=16, block=False, proxy_headers=headers)
    pool.pool_classes_by_scheme = POOLS
    return pool


def _proxy_for(address: str) -> str | None:
    """Return the proxy that the environment names (https_proxy, no_proxy, …), as curl understands it."""
    parts = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc) or _lies_in(proxies.get("no", ""), parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _lies_in(networks: str, host: str) -> bool:
    """Say whether a host's address is in one of some networks (10.0.0.0/8, ::1): the library knows names."""
    for network in networks.split(","):
        with suppress(ValueError):  # one of both is a name
            if ip_address(host) in ip_network(network.strip(), strict=False):
                return True
    return False


def chunks(response: urllib3.BaseHTTPResponse, patience: Patience) -> Iterator[bytes]:
    """Yield what arrives, until the end, a stall or a drip."""
    began, received = time.monotonic(), 0
    try:
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk
            received += len(chunk)
            waited = time.monotonic() - began
            if waited > patience.stall_seconds:
                if received < _LEAST_BYTES_PER_SECOND * waited:
                    raise Retry(f"only {received / waited:,.0f} bytes a second")
                began, received = time.monotonic(), 0
    except (HTTPError, OSError) as error:
        raise Retry(f"the transfer broke off: {_brief(error)}") from None


def number_of(text: str) -> int | None:
    """Read a header's number; None where it is none, or beyond any file's size."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _seconds(text: str) -> float:
    """Return how long a server asks to wait, told as seconds or as a date; never too long for a run."""
    seconds: float | None = number_of(text)
    if seconds is None:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _MOST_BACKOFF_SECONDS)


def _error_code(response: urllib3.BaseHTTPResponse) -> str:
    """Return S3's own word for an error, where the answer holds it."""
    with suppress(HTTPError, OSError):
        if code := _ERROR_CODE.search(response.read1(4096)):
            return code[1].decode()
    return ""


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
