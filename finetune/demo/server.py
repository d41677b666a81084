"""The demo's web server: loopback only, two addresses, no file of the machine within reach. Knows no model.

A page elsewhere cannot use it: the Host header must name the loopback (against DNS rebinding), the page may
load nothing from elsewhere (Content-Security-Policy), and uploads need a header that a form cannot send.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from coatnet.config import UserError
from coatnet.config.plain_text import json_text

LOOPBACK = "127.0.0.1"
MAX_UPLOAD_BYTES = 32 * 1024 * 1024
_PAGE = Path(__file__).with_name("page.html")
_IDLE_SECONDS = 30
_LENGTH = re.compile(r"[0-9]{1,12}")  # thousands of digits are no number that Python would read
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Answer = Callable[[bytes], dict[str, Any]]


def check_port(port: int) -> None:
    """Make sure that a port can be had, before a model is loaded.

    Raises:
        UserError: it is taken, or not for us.
    """
    _bound(port, BaseHTTPRequestHandler).server_close()


def make_server(answer: Answer, *, title: str, port: int) -> ThreadingHTTPServer:
    """Bind the server; `serve_forever` runs it. `answer` turns an image's bytes into the JSON that is shown.

    Raises:
        UserError: the port is taken.
    """
    parts = {"answer": staticmethod(answer), "title": title, "one_at_a_time": threading.Lock()}
    handler = type("Handler", (_Handler,), parts)
    return _bound(port, handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what failed, but nothing of a page that went away before its answer came."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _bound(port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    try:
        return _Server((LOOPBACK, port), handler)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; take another, or 0 for any free one") from None


class _Handler(BaseHTTPRequestHandler):
    answer: Answer
    title: str
    one_at_a_time: threading.Lock
    timeout = _IDLE_SECONDS
    server_version, sys_version = "coatnet", ""

    def do_GET(self) -> None:
        if not self._is_local():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, _PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/about":
            self._send_json(HTTPStatus.OK, {"title": self.title})
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is only /"})

    def do_POST(self) -> None:
        if not self._is_local():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict" or self.headers.get("Content-Type") != "application/octet-stream":
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": "expected an image's bytes at /predict"})
        elif not _LENGTH.fullmatch(length) or int(length) > MAX_UPLOAD_BYTES:
            limit = MAX_UPLOAD_BYTES >> 20
            self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"more than {limit} MiB"})
            self.close_connection = True
        else:
            self._predict(self.rfile.read(int(length)))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what a user drops is nobody's business."""

    def _predict(self, payload: bytes) -> None:
        try:
            with self.one_at_a_time:
                result = self.answer(payload)
        except UserError as error:
            self._send_json(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})
        else:
            self._send_json(HTTPStatus.OK, result)

    def _is_local(self) -> bool:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host in {LOOPBACK, "localhost"}:
            return True
        self._send_json(HTTPStatus.FORBIDDEN, {"error": "this page is for this machine alone"})
        return False

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, json_text(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
