"""An HTTP server of a folder that can do everything wrong that servers do, a given number of times."""

from __future__ import annotations

import gzip
import itertools
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# What never ends: a header, and the length of a chunk.
_SLOW = {
    "slow head": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "slow chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


class FaultServer:
    """Serves `folder` with ranges and ETags, by TLS where there is a file of a key and a certificate.

    Attributes:
        faults: by file name, a list of faults; each request for the file uses up the first one.
            "503", "404": that status, "503 Retry-After: 2" with that header, "403 <Error/>" with that body.
            "reset": no answer. "gzip": compressed, unasked. "endless": no length, and never an end.
            "cut": half of what was asked for, then an end. "stall": half of it, then silence.
            "drip": a byte every 50 ms. "long", "short": a wrong length.
            "slow head", "slow chunk": the same of a header, and of a chunk's length, without an end.
            "flip": one bit is wrong. "changed": another ETag and an answer of 200 to a range.
            "piece": 206 and the first half of what was asked for, though it may have been all.
            "whole piece": 206 and all of it.
        requests: how often each file was asked for.
        ranges: the Range headers that came, by file.
        etag: what stands for a file of so many bytes; a weak one (W/) matches no If-Range.
    """

    def __init__(self, folder: Path, *, certificate: Path | None = None) -> None:
        self.folder = folder
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: dict[str, list[str]] = {}
        self.etag = '"{}"'
        self.closing = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fault_server": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_fault(self, name: str, ranged: str | None) -> str:
        with self._lock:
            self.requests[name] += 1
            if ranged:
                self.ranges.setdefault(name, []).append(ranged)
            waiting = self.faults.get(name, [])
            return waiting.pop(0) if waiting else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault_server: FaultServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        path = self.fault_server.folder / name
        ranged = self.headers.get("Range")
        fault = self.fault_server.next_fault(name, ranged)
        self.close_connection = bool(fault)
        if fault == "reset":
            return
        if fault in _SLOW:
            self.wfile.write(_SLOW[fault])
            self._drip(itertools.repeat(ord("a")))
            return
        status, _, more = fault.partition(" ")
        if status.isdigit() or not path.is_file():
            self._answer(int(status or 404), more)
            return
        content = path.read_bytes()
        etag = self.fault_server.etag.format(len(content))
        if self.headers.get("If-Range", etag) != etag or "W/" in self.headers.get("If-Range", ""):
            ranged = None
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged and fault != "changed" else 0
        if start and start >= len(content):
            self._answer(416, f"Content-Range: bytes */{len(content)}")
            return
        if fault == "gzip":
            content = gzip.compress(content)
        end = (start + len(content)) // 2 if fault == "piece" else len(content)
        as_part = fault.endswith("piece") or (bool(ranged) and fault != "changed")
        self._send_head(content, start, end, as_part=as_part, fault=fault)
        self._send_body(content[start:end], fault)

    def _answer(self, status: int, more: str) -> None:
        """Send no file, but a header, `Name: value`, or an error's body, which begins with `<`."""
        body = more.encode() if more.startswith("<") else b""
        self.send_response(status)
        if more and not body:
            self.send_header(*more.split(": ", 1))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _send_head(self, content: bytes, start: int, end: int, *, as_part: bool, fault: str) -> None:
        self.send_response(206 if as_part else 200)
        self.send_header(
            "ETag", '"other"' if fault == "changed" else self.fault_server.etag.format(len(content))
        )
        if as_part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        off = {"long": 100, "short": -100}.get(fault, 0)
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if fault != "endless":
            self.send_header("Content-Length", str(end - start + off))
        self.end_headers()

    def _send_body(self, body: bytes, fault: str) -> None:
        if fault == "flip":
            body = body[:50] + bytes([body[50] ^ 1]) + body[51:]
        elif fault in ("cut", "stall"):
            body = body[: len(body) // 2]
        elif fault == "short":
            body = body[:-100]
        try:
            if fault == "drip":
                self._drip(body)
                return
            self.wfile.write(body)
            while fault == "endless" and not self.fault_server.closing.is_set():
                self.wfile.write(bytes(1 << 16))
            self.wfile.flush()
            if fault == "stall":
                self.fault_server.closing.wait(30)
        except OSError:
            return  # the client gave up, as it should

    def _drip(self, sent: Iterable[int]) -> None:
        with suppress(OSError):  # the client gave up, as it should
            for byte in sent:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.fault_server.closing.wait(0.05):
                    return


def seconds_of(work: Any) -> float:
    """Return how long a call takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
