"""Signals only set a flag."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coatnet.runtime.stop import StopFlag


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_sets_the_flag_and_a_second_one_changes_nothing(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name


def test_handlers_are_put_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_child_dies_of_the_signal_that_its_parent_only_notes() -> None:
    with StopFlag():
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        while signal.SIGTERM in _caught(child):
            time.sleep(0.005)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def _caught(pid: int) -> set[int]:
    line = next(
        one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("SigCgt")
    )
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_a_started_program_does_not_inherit_the_handlers() -> None:
    with StopFlag():
        code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
