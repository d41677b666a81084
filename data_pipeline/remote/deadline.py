"""Connections whose answers come in time: a header, or a read behind it, has one deadline as a whole.

A socket's own timeout begins anew with every byte: a server that drips a header, or the length of a chunk,
could take hours for it. Knows no file.
"""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPResponse
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class _InTime(io.RawIOBase):
    """What arrives at a socket, until the time is over that its timeout gives."""

    def __init__(self, sock: socket.socket, arriving: io.RawIOBase) -> None:
        self._socket, self._arriving, self._seconds = sock, arriving, sock.gettimeout()
        self.renew()

    def renew(self) -> None:
        """Begin the time anew."""
        self._deadline = None if self._seconds is None else time.monotonic() + self._seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer takes too long")
            self._socket.settimeout(left)
        return self._arriving.readinto(buffer)

    def close(self) -> None:
        self._arriving.close()
        super().close()


class _Response(HTTPResponse):
    """An answer, also a proxy's, whose header is read as soon as it is made."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._source = _InTime(sock, self.fp.detach())
        self.fp = io.BufferedReader(self._source)

    def read1(self, n: int = -1) -> bytes:
        self._source.renew()
        return super().read1(n)


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


POOLS: dict[str, type[HTTPConnectionPool]] = {"http": _Pool, "https": _SecurePool}
