"""What a rank does before it loads torch: that takes seconds, and minutes from a slow disk. Imports none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coatnet.config import UserError
from coatnet.runtime.lease import Lease
from coatnet.runtime.rendezvous import own_rank
from coatnet.runtime.voice import say_from_a_handler

_SILENT_SECONDS = 2.0


def lease_early(directory: Path) -> Lease | None:
    """Take the lease on a run's directory, on the main rank: a second start hears at once who holds it.

    None on the others, and where it cannot be had: `opened_run` asks again, and tells all ranks why not.
    """
    if own_rank() != 0:
        return None
    with suppress(UserError, OSError):
        return Lease.acquire(directory)
    return None


@contextmanager
def loading(what: str, directory: Path) -> Iterator[None]:
    """Say on the main rank what a run's start is at, if that takes more than two seconds."""
    timer = threading.Timer(_SILENT_SECONDS, say_from_a_handler, [f"{directory}: loading {what}"])
    timer.daemon = True
    if own_rank() == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
