"""How a benchmark waits for what nobody gives word of."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(is_so: Callable[[], bool], *, what: str, seconds: float = 60.0) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it is not in time.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so within {seconds:.0f} s")
        time.sleep(0.002)
