"""The demo's server when a page goes away, or an answer fails, in the middle."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from finetune.demo.server import LOOPBACK, make_server

_HEADERS = {"Content-Type": "application/octet-stream"}
_RESET = struct.pack("ii", 1, 0)  # closing sends a reset instead of waiting


@contextmanager
def served(answer: Callable[[bytes], dict[str, Any]]) -> Iterator[int]:
    with make_server(answer, title="tiny", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # looks for its end so often
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port: int) -> int:
    connection = HTTPConnection(LOOPBACK, port, timeout=60)
    connection.request("POST", "/predict", b"image", _HEADERS)
    return connection.getresponse().status


def test_a_page_that_went_away_before_its_answer_is_not_worth_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked, gone, workers = threading.Event(), threading.Event(), []

    def answer(payload: bytes) -> dict[str, Any]:
        workers.append(threading.current_thread())
        asked.set()
        gone.wait(60)
        return {"guesses": []}

    with served(answer) as port:
        page = socket.create_connection((LOOPBACK, port))
        page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        lines = (f"POST /predict HTTP/1.1\r\nHost: {LOOPBACK}", "Content-Type: application/octet-stream")
        page.sendall("\r\n".join((*lines, "Content-Length: 5\r\n\r\nimage")).encode())
        assert asked.wait(60)
        page.close()
        gone.set()
        workers[0].join(60)
        assert ask(port) == 200
    assert capfd.readouterr().err == ""


def test_an_answer_that_fails_is_told_in_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    def answer(payload: bytes) -> dict[str, Any]:
        raise RuntimeError("a fault of the demo's own")

    with served(answer) as port, pytest.raises(ConnectionError):
        ask(port)
    assert "a fault of the demo's own" in capfd.readouterr().err
