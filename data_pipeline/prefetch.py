"""Batches made ahead by threads, in order. Knows no samples.

Threads and not processes: decoding releases the GIL, and a thread is neither lost nor leaves memory behind.
Daemons, and no pool of the library's: leaving the program must not wait for one that waits for a store.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from math import ceil
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
_MOST_ROWS = 32
_ENDING_SECONDS = 2.0
_LOOK_SECONDS = 1.0  # a chunk that takes longer waits for something else than a core
_Work = tuple[Future[None], Callable[[], None]]


class Pending(Protocol[T_co]):
    """A batch of rows under way: they are filled in any order, by any thread; then `finish` is called."""

    def __len__(self) -> int: ...

    def fill(self, begin: int, end: int) -> None: ...

    def finish(self) -> T_co: ...


def made_ahead(
    pending: Iterator[Pending[T]], *, threads: int, ahead: int, meanwhile: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Yield finished batches in order, keeping up to `ahead` more under way.

    An error in a chunk is raised when its batch's turn comes. Closing the iterator ends the threads; one that
    does not come out of its chunk in time is left behind.

    Args:
        pending: the batches to make.
        threads, ahead: how.
        meanwhile: called every so often while a batch is not done; what it raises ends the wait.
    """
    work: SimpleQueue[_Work | None] = SimpleQueue()
    crew = [
        Thread(target=_do, args=[work], name=f"loader-{number}", daemon=True) for number in range(threads)
    ]
    for thread in crew:
        thread.start()
    queue: deque[tuple[Pending[T], list[Future[None]]]] = deque()
    try:
        for batch in pending:
            chunks = chunks_of(len(batch), threads=threads)
            queue.append((batch, [_begun(partial(batch.fill, *chunk), work) for chunk in chunks]))
            if len(queue) > ahead:
                yield _finished(*queue.popleft(), meanwhile)
        while queue:
            yield _finished(*queue.popleft(), meanwhile)
    finally:
        with suppress(Empty):
            while True:
                work.get_nowait()
        for _ in crew:
            work.put(None)
        until = time.monotonic() + _ENDING_SECONDS
        for thread in crew:
            thread.join(max(0.0, until - time.monotonic()))


def chunks_of(rows: int, *, threads: int) -> list[tuple[int, int]]:
    """Cut a batch's rows into chunks (begin, end) in which all threads have a part."""
    size = max(1, min(_MOST_ROWS, ceil(rows / threads)))
    return [(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def _begun(chunk: Callable[[], None], work: SimpleQueue[_Work | None]) -> Future[None]:
    future: Future[None] = Future()
    work.put((future, chunk))
    return future


def _do(work: SimpleQueue[_Work | None]) -> None:
    while (one := work.get()) is not None:
        future, chunk = one
        try:
            future.set_result(chunk())
        except BaseException as error:
            future.set_exception(error)
        del one, future, chunk  # a batch that was taken is not kept by who waits for the next


def _finished(batch: Pending[T], futures: list[Future[None]], meanwhile: Callable[[], None]) -> T:
    for future in futures:
        while not future.done():
            if wait([future], _LOOK_SECONDS).not_done:
                meanwhile()
        future.result()
    return batch.finish()
