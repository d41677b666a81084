"""The command that a user types, while it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from waiting import wait_until

ROOT = Path(__file__).parents[3]
Command = subprocess.Popen[bytes]


def start(*given: str) -> Command:
    """Type `coatnet pretrain`."""
    command = [sys.executable, "-m", "coatnet.cli", "pretrain", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def begun(command: Command, is_so: Callable[[], bool]) -> None:
    """Wait until something is so of a command that goes on."""

    def happened() -> bool:
        assert command.poll() is None, command.communicate()[1].decode()
        return is_so()

    wait_until(happened, what="the beginning of a run")
