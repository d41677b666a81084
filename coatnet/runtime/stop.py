"""The stop flag: signals only set it; all ranks agree on it at a step boundary."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """A context in which SIGTERM, SIGUSR1 and SIGINT mean "stop at the next step boundary".

    A second signal changes nothing: it must not abort the save that the first one asked for. Children that
    are forked inside get the default handlers back.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}
        self.reason: str | None = None

    @property
    def requested(self) -> bool:
        """True once a signal arrived on this rank, or `request` was called."""
        return self._event.is_set()

    def request(self, reason: str) -> None:
        """Ask for a stop from within."""
        self.reason = self.reason or reason
        self._event.set()

    def __enter__(self) -> StopFlag:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        os.register_at_fork(after_in_child=self._restore_in_child)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)

    def _restore_in_child(self) -> None:
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL)
