"""What a run reports: one JSON line per record and the same in TensorBoard. Only the main rank writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coatnet.runtime.run_directory import RunDirectory


class MetricsLog:
    """Writes metrics.jsonl and TensorBoard event files; silent where `enabled` is false."""

    def __init__(self, run: RunDirectory, *, enabled: bool) -> None:
        self._run, self._enabled = run, enabled
        if enabled:
            _keep_the_board_quiet()
        self._writer: Any = None

    def scalars(self, values: dict[str, float], *, samples_seen: int) -> None:
        """Record numbers at a position of the run. What is not finite is kept as text in the JSON line."""
        if not self._enabled:
            return
        lost = {"lost_records": self._run.lost_records} if self._run.lost_records else {}
        self._run.append(
            self._run.metrics, {"time": time.time(), "samples_seen": samples_seen, **values, **lost}
        )
        with self._survived():
            for name, value in values.items():
                self._board().add_scalar(name, value, samples_seen)

    def images(self, name: str, images: Any, *, samples_seen: int) -> None:
        """Record images, uint8 or float in 0…1. Shape: (n, H, W, 3)."""
        if self._enabled:
            with self._survived():
                self._board().add_images(name, images, samples_seen, dataformats="NHWC")

    def figure(self, name: str, figure: Any, *, samples_seen: int) -> None:
        """Record a matplotlib figure."""
        if self._enabled:
            with self._survived():
                self._board().add_figure(name, figure, samples_seen)

    def flush(self) -> None:
        """Hand everything to the file system."""
        if self._writer is not None:
            with self._survived():
                self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with self._survived():
                self._writer.close()
            self._writer = None

    @contextmanager
    def _survived(self) -> Iterator[None]:
        """Count what a full disk costs; its writer is of no use any more, and the next has a new file."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self._run.lose_record(error)

    def _board(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._run.tensorboard))
        return self._writer


def _keep_the_board_quiet() -> None:
    """Let TensorBoard's thread end without stacks where a disk is full: the next call here counts that."""
    usual = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        of_board = type(ended.thread).__module__.startswith("tensorboard.")
        if not (of_board and isinstance(ended.exc_value, OSError)):
            usual(ended)

    threading.excepthook = hook
