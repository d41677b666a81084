"""The command that a user types, while it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import PATIENCE_SECONDS, wait_until

from coatnet.runtime.run_directory import RunDirectory

ROOT = Path(__file__).parents[3]
Command = subprocess.Popen[bytes]


def start(*given: str) -> Command:
    """Type `coatnet pretrain`."""
    command = [sys.executable, "-m", "coatnet.cli", "pretrain", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


@contextmanager
def going_on(*given: str) -> Iterator[Command]:
    """Type `coatnet pretrain`, and leave nothing of it behind."""
    command = start(*given)
    try:
        yield command
    finally:
        command.kill()
        command.wait()


def begun(command: Command, is_so: Callable[[], bool]) -> None:
    """Wait until something is so of a command that goes on."""

    def happened() -> bool:
        assert command.poll() is None, command.communicate()[1].decode()
        return is_so()

    wait_until(happened, what="the beginning of a run")


def stepping(command: Command, run: RunDirectory) -> None:
    """Wait until the run has taken a step."""
    begun(command, lambda: run.metrics.exists() and run.metrics.stat().st_size > 0)


def told_to_stop(command: Command, run: RunDirectory, *, by: signal.Signals) -> str:
    """Send a signal, wait until the run has stopped as asked, and return what it said."""
    command.send_signal(by)
    errors = command.communicate(timeout=PATIENCE_SECONDS)[1].decode()
    assert command.returncode == 0 and run.marker("stopped") is not None, errors
    return errors
