"""Traces and memory snapshots of chosen steps; costs nothing when none is chosen. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from coatnet.config.plain_text import number_of
from coatnet.runtime.ranks import Ranks

_SILENT = "6"  # above the levels at which kineto writes of each start and stop to stderr


class StepProfiler:
    """Records `torch.profiler` traces of a window of steps, one file per rank."""

    def __init__(
        self,
        window: range,
        *,
        folder: Path,
        ranks: Ranks,
        patience: Callable[[], AbstractContextManager[None]],
        alarm: Callable[[str], None],
    ) -> None:
        """Trace nothing yet.

        Args:
            window: the steps.
            folder: for the traces.
            ranks: all of them trace.
            patience: for what all ranks do at once between two steps: a trace may take minutes to be written.
            alarm: called with a line where some could not be.
        """
        self._window, self._folder, self._ranks = window, folder, ranks
        self._patience, self._alarm = patience, alarm
        self._profiler: Any = None
        self._first, self._empty = 0, True

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
            self._first, self._empty = step, True
            self._profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self._profiler.start()

    def after_step(self, step: int) -> None:
        """Write the trace after the window's last step."""
        self._empty = False
        if step >= self._window.stop - 1:
            self.close(step)

    def close(self, step: int) -> None:
        """Write what was traced up to a step, if anything was; all ranks call this at once.

        torch holds Python's lock meanwhile: no thread could answer a stop, so it is said before.
        """
        if self._profiler is None:
            return
        profiler, self._profiler, self._window = self._profiler, None, range(0)
        if self._empty:  # the run was stopped right before the first of them
            profiler.stop()
            return
        self._ranks.say(f"profile.steps: writes the traces of steps {self._first} to {step}: {self._folder}")
        with self._patience():
            faults = self._ranks.gather(self._try_to_write(profiler, step))
        lacking = [rank for rank, fault in enumerate(faults) if fault is not None]
        if lacking:
            self._alarm(
                f"profile.steps: {number_of(len(lacking), 'rank')} left no trace; rank {lacking[0]}: "
                f"{faults[lacking[0]]}"
            )

    def _try_to_write(self, profiler: Any, step: int) -> str | None:
        """Write this rank's trace; return what kept it from that."""
        fault = None
        profiler.stop()
        try:
            self._write(profiler, f"steps-{self._first}-{step}-rank{self._ranks.rank}")
        except OSError as error:
            fault = str(error)
        if torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(enabled=None)
        return fault

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
