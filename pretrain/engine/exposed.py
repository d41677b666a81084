"""Gives DeepSpeed's collectives their own class in the time account. Knows no model and no loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from coatnet.runtime.account import TimeAccount

_COLLECTIVES = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)


class ExposedCommunication:
    """Times the collectives that DeepSpeed calls in a step, as far as the step waits for them.

    On a CPU a call waits itself, or its handle does. On a GPU the stream of the backward pass waits: events
    around the call tell how long, once the step is over. What runs on a stream beside it is hidden.
    """

    def __init__(self, account: TimeAccount) -> None:
        """Wrap the collectives of DeepSpeed in this process, which has begun."""
        from deepspeed.comm import comm

        self._account = account
        self._events: list[tuple[Any, Any]] = []
        for name in _COLLECTIVES:
            if hasattr(comm.cdb, name):
                setattr(comm.cdb, name, self._timed(getattr(comm.cdb, name)))

    def settle(self) -> None:
        """Move the finished events' time from `compute`; call it where the GPU has been waited for."""
        if self._events:
            milliseconds = sum(begin.elapsed_time(end) for begin, end in self._events)
            self._events.clear()
            self._account.shift(milliseconds / 1000, source="compute", target="communication")

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(collective)
        def call(*arguments: Any, **options: Any) -> Any:
            found = self._wait(lambda: collective(*arguments, **options))
            return _TimedHandle(found, self._wait) if options.get("async_op") and found is not None else found

        return call

    def _wait(self, work: Callable[[], Any]) -> Any:
        if not torch.cuda.is_available():
            with self._account.measure("communication", inside="compute"):
                return work()
        if self._account.counting != "compute" or not _on_main_stream():
            return work()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        found = work()
        end.record()
        self._events.append((begin, end))
        return found


class _TimedHandle:
    """A handle of an asynchronous collective whose `wait` is timed."""

    def __init__(self, handle: Any, timed: Callable[[Callable[[], Any]], Any]) -> None:
        self._handle, self._timed = handle, timed

    def wait(self, *arguments: Any, **options: Any) -> Any:
        return self._timed(lambda: self._handle.wait(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _on_main_stream() -> bool:
    return bool(torch.cuda.current_stream() == torch.cuda.default_stream())
