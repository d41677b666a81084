"""Traces and memory snapshots of chosen steps; costs nothing when none is chosen. Knows no model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

_SILENT = "6"  # above the levels at which kineto writes of each start and stop to stderr


class StepProfiler:
    """Records `torch.profiler` traces of a window of steps, one file per rank."""

    def __init__(self, window: range, *, folder: Path, rank: int) -> None:
        self._window, self._folder, self._rank = window, folder, rank
        self._profiler: Any = None

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
            self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self._profiler.start()

    def after_step(self, step: int) -> None:
        """Write the trace after the window's last step."""
        if step >= self._window.stop - 1:
            self.close(step)

    def close(self, step: int) -> None:
        """Write what was traced up to a step, if anything is being traced."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self._window.start}-{step}-rank{self._rank}"
        profiler.export_chrome_trace(str(self._folder / f"{name}.json"))
        if torch.cuda.is_available():
            # torch's own format for its memory viewer; nothing here ever reads it back
            torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}-memory.bin"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self._window = range(0)
