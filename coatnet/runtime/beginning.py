"""What a rank does before it loads torch: that takes seconds, and minutes from a slow disk. Imports none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coatnet.runtime.lease import Lease, LeaseHeld
from coatnet.runtime.rendezvous import ends_for_all, own_rank
from coatnet.runtime.voice import say_from_a_handler

_SILENT_SECONDS = 2.0


def lease_early(directory: Path) -> Lease | None:
    """Take the lease on a run's directory, on the main rank: a second start hears at once who holds it.

    None on the others, and where it cannot be had and they would wait for this one: `opened_run` asks again,
    and tells all of them why not.

    Raises:
        LeaseHeld: a living job has it, and all ranks of this one end with the main one.
    """
    if own_rank() != 0:
        return None
    try:
        return Lease.acquire(directory)
    except LeaseHeld:
        if ends_for_all():
            raise
    except OSError:
        pass
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
