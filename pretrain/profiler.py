"""Traces and memory snapshots of chosen steps; costs nothing when none is chosen. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

_SILENT = "6"  # above the levels at which kineto writes of each start and stop to stderr


class StepProfiler:
    """Records `torch.profiler` traces of a window of steps, one file per rank."""

    def __init__(
        self,
        window: range,
        *,
        folder: Path,
        rank: int,
        patience: Callable[[], AbstractContextManager[None]],
        alarm: Callable[[str], None],
    ) -> None:
        """Trace nothing yet.

        Args:
            window: the steps.
            folder: for the traces.
            rank: this one.
            patience: for what all ranks do at once between two steps: a trace may take minutes to be written.
            alarm: called with a line where one could not be.
        """
        self._window, self._folder, self._rank = window, folder, rank
        self._patience, self._alarm = patience, alarm
        self._profiler: Any = None
        self._first = 0

    def before_step(self, step: int) -> None:
        """Begin at the window's first step, or at the first one that this life takes of it.

        Args:
            step: the number that the step will have when it is done.
        """
        if self._profiler is None and step in self._window:
            os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history()
            self._first = step
            self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self._profiler.start()

    def after_step(self, step: int) -> None:
        """Write the trace after the window's last step."""
        if self._profiler is not None and step >= self._window.stop - 1:
            with self._patience():
                self.close(step)

    def close(self, step: int) -> None:
        """Write what was traced up to a step, if anything is being traced."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        name = f"steps-{self._first}-{step}-rank{self._rank}"
        try:
            self._write(profiler, name)
        except OSError as error:
            self._alarm(f"profile.steps: no trace: {error}")
        if torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(enabled=None)
        self._window = range(0)

    def _write(self, profiler: Any, name: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"{name}.json"
        profiler.export_chrome_trace(str(trace))
        if not trace.exists():  # kineto, which writes it, says nothing
            (self._folder / f"{name}.json.tmp").unlink(missing_ok=True)
            raise OSError(f"{trace} could not be written")
        if torch.cuda.is_available():
            # torch's own format for its memory viewer; nothing here ever reads it back
            torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}-memory.bin"))
