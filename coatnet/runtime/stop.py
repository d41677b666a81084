"""The stop flag: signals only set it; all ranks agree on it at a step boundary."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# A terminal that goes away sends the last; nohup, which ignores it for whatever it starts, is to be believed.
_HEEDS_HANGUP = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, *([signal.SIGHUP] if _HEEDS_HANGUP else []))


@contextmanager
def held_signals() -> Iterator[None]:
    """Keep the stop signals waiting: what comes before a `StopFlag` or a launcher can take them is not lost.

    Loading torch takes seconds, in which a signal would simply kill. Processes that are started inside
    inherit the waiting. Whatever still waits at the end has come too late to stop anything, and is dropped.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        fresh = set(SIGNALS) - previous
        while fresh and signal.sigtimedwait(fresh, 0) is not None:
            pass
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class Stopped(BaseException):
    """A stop was asked for where nothing is lost by it. No Exception: what handles errors would handle it."""


class StopFlag:
    """A context in which each of SIGNALS means "stop at the next step boundary".

    A second signal changes nothing: it must not abort the save that the first one asked for. Children that
    are forked inside get the default handlers back. Where signals were held they have no effect afterwards
    either: what is saved must not end badly because a second one came late.

    Attributes:
        reason: the first signal's name; None until then.
        asked_at: when that was, on the monotonic clock.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._mask: set[int] = set()
        self._at_once = False
        self.reason: str | None = None
        self.asked_at = math.inf

    @property
    def requested(self) -> bool:
        """True once a signal arrived on this rank, or `request` was called."""
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Ask for a stop from within. Takes no lock: a handler may interrupt another that holds it."""
        if self.reason is None:
            self.reason, self.asked_at = reason, time.monotonic()

    def check(self) -> None:
        """Raise where a stop was asked for.

        Raises:
            Stopped: it was.
        """
        if self.requested:
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """End the block, of the main thread, as soon as a stop was asked for: nothing is lost by that.

        Raises:
            Stopped: it was, whatever the block was at.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> StopFlag:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        os.register_at_fork(after_in_child=self._restore_in_child)
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._previous.items():
            if number not in self._mask:  # threads that do not hold it would let it kill
                signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
        if self._at_once:
            self._at_once = False  # another signal must not abort what this one leads to
            raise Stopped

    def _restore_in_child(self) -> None:
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
