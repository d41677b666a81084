"""How long a rank works by itself in a step, until it begins to wait for the others. Knows no model."""

from __future__ import annotations

import time
from typing import Any

import torch


class OwnTime:
    """Measures from `begin` to `end`.

    On a GPU the host only sends work off, and a slow card would look like the others: events tell.
    """

    def __init__(self, *, device_type: str) -> None:
        self._on_gpu = device_type == "cuda"
        self._marks: list[Any] = []

    def begin(self) -> None:
        """Start anew."""
        self._marks = [self._mark()]

    def end(self) -> None:
        """Stop."""
        self._marks.append(self._mark())

    def seconds(self) -> float:
        """Return the time between both; on a GPU once it is there, so ask when the step is done."""
        first, last = self._marks
        if not self._on_gpu:
            return float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
