"""How a test waits: for the event itself, and for so long that only a hang takes longer, on any machine."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 240.0  # pytest ends a test after 300 (pyproject.toml), and then says less


def wait_until(happened: Callable[[], object], *, what: str) -> None:
    """Return once something has happened that nobody gives word of."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s for {what}"
        time.sleep(0.01)
