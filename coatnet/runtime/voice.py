"""What a run says, to whoever may have gone: `| tee` ends by the Ctrl-C that the run heeds, a disk is full.

Nothing that cannot be said ends a run.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # a reader, or a terminal


class _Heedless:
    """A stream that drops what cannot be written; everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(partial(self._stream.write, text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def end(self) -> None:
        """Write what is buffered, or never: a disk that is still full would give the process status 120."""
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _try(self, say: Callable[[], object]) -> None:
        try:
            say()
        except OSError as error:
            if error.errno in _GONE:
                self._fall_silent()

    def _fall_silent(self) -> None:
        """Let what is buffered, and what libraries write, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def heedless_voice() -> Iterator[None]:
    """Let stdout and stderr drop, inside, what cannot be written."""
    streams = sys.stdout, sys.stderr
    voices = [_Heedless(stream) for stream in streams]
    sys.stdout, sys.stderr = voices
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for voice in voices:
            voice.end()


def say_from_a_handler(text: str) -> None:
    """Write a line to stderr from a signal's handler, which may have come in the middle of a print."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
