"""How long this process was stopped: by SIGSTOP, as a suspended job, with its machine. Nobody tells it."""

from __future__ import annotations

import time

_LEAST_SECONDS = 2.0  # a thread of a busy process on a busy machine comes late by less


class Absence:
    """For a thread that looks every so often: what it comes late, the process was not there."""

    def __init__(self, *, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._looked_at = time.monotonic()

    def seconds(self) -> float:
        """Return for how long the process was stopped since the last look."""
        now = time.monotonic()
        late = now - self._looked_at - self._every_seconds
        self._looked_at = now
        return late if late > _LEAST_SECONDS else 0.0
