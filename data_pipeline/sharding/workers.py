"""Runs many jobs in processes. Knows no shards."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from coatnet.config import UserError
from coatnet.runtime.parent import die_with_parent

R = TypeVar("R")
_JOBS_PER_WORKER = 2  # submitted ahead: their items are copied to the workers


def run_jobs(jobs: Iterator[Callable[[], R]], *, workers: int, count: int) -> Iterator[R]:
    """Run jobs, yielding results as they come; in this process if one worker suffices.

    Args:
        workers: processes; 0 for one per core.
        count: how many jobs there are.

    Raises:
        UserError: a worker died.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), count)
    if workers <= 1:
        yield from (job() for job in jobs)
        return
    # spawn: a fork would inherit the locks of this process' threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),)
    ) as pool:
        try:
            running = {pool.submit(job) for job in islice(jobs, workers * _JOBS_PER_WORKER)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(job) for job in islice(jobs, len(done))}
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise UserError(
                "a worker process died (out of memory?); the same command goes on where it was"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker whose parent was killed would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
