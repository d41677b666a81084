"""Failures of a file system that may pass: they say nothing of what was to be read. Knows no samples."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# A network's file system finds its way back to a server; others have too many files open.
PASSING = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.EMFILE,
    errno.ENFILE,
)
PAUSES_SECONDS = (0.2, 2.0, 8.0)


def tried_again(work: Callable[[], T]) -> T:
    """Return what `work` returns, trying it again where its failure may pass.

    Raises:
        OSError: the failure does not pass, or has not for ten seconds.
    """
    for pause in PAUSES_SECONDS:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(pause)
    return work()
