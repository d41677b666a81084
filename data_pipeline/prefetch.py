"""Batches made ahead by threads, in order. Knows no samples.

Threads and not processes: decoding releases the GIL, and a thread is neither lost nor leaves memory behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import ceil
from typing import Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
_MOST_ROWS = 32


class Pending(Protocol[T_co]):
    """A batch under way: its chunks fill one buffer in any order; `finish` is called once all are done."""

    def chunks(self) -> list[Callable[[], None]]: ...

    def finish(self) -> T_co: ...


def chunks_of(fill: Callable[[int, int], None], *, rows: int, threads: int) -> list[Callable[[], None]]:
    """Cut a batch's rows into chunks, `fill(begin, end)` each, in which all threads have a part."""
    size = max(1, min(_MOST_ROWS, ceil(rows / threads)))
    return [partial(fill, begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def made_ahead(pending: Iterator[Pending[T]], *, threads: int, ahead: int) -> Generator[T, None, None]:
    """Yield finished batches in order, keeping up to `ahead` more under way.

    An error in a chunk is raised when its batch's turn comes. Closing the iterator ends the threads.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    queue: deque[tuple[Pending[T], list[Future[None]]]] = deque()
    try:
        for batch in pending:
            queue.append((batch, [executor.submit(chunk) for chunk in batch.chunks()]))
            if len(queue) > ahead:
                yield _finished(*queue.popleft())
        while queue:
            yield _finished(*queue.popleft())
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _finished(batch: Pending[T], futures: list[Future[None]]) -> T:
    for future in futures:
        future.result()
    return batch.finish()
