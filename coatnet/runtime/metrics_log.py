"""What a run reports: one JSON line per record and the same in TensorBoard. Only the main rank writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
        self._show(lambda board: [board.add_scalar(*each, samples_seen) for each in values.items()])

    def images(self, name: str, images: Any, *, samples_seen: int) -> None:
        """Record images, uint8 or float in 0…1. Shape: (n, H, W, 3)."""
        self._show(lambda board: board.add_images(name, images, samples_seen, dataformats="NHWC"))

    def figure(self, name: str, figure: Any, *, samples_seen: int) -> None:
        """Record a matplotlib figure."""
        self._show(lambda board: board.add_figure(name, figure, samples_seen))

    def flush(self) -> None:
        """Hand everything to the file system."""
        if self._writer is not None:
            self._show(lambda board: board.flush())

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._show(lambda board: board.close())
            self._writer = None

    def _show(self, draw: Callable[[Any], object]) -> None:
        """Give TensorBoard's writer to `draw`; after a full disk, which counts, the next has a new file."""
        if not self._enabled:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._run.tensorboard))
            draw(self._writer)
        except OSError as error:
            self._writer = None
            self._run.lose_record(error)


def _keep_the_board_quiet() -> None:
    """Let TensorBoard's thread end without stacks where a disk is full: the next call here counts that."""
    usual = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        of_board = type(ended.thread).__module__.startswith("tensorboard.")
        if not (of_board and isinstance(ended.exc_value, OSError)):
            usual(ended)

    threading.excepthook = hook
