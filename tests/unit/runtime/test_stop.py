"""Signals only set a flag."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from coatnet.runtime.stop import SIGNALS, StopFlag, Stopped, held_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_a_second_one_changes_nothing(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        for later in SIGNALS:
            os.kill(os.getpid(), later)
        assert stop.requested and stop.reason == number.name


def test_where_nothing_is_lost_a_stop_ends_what_is_under_way_once() -> None:
    reached = []
    with StopFlag() as stop:
        with pytest.raises(Stopped), stop.at_once():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                reached.append("behind the signal")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("what is put in order")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("what the stop leads to")
        with pytest.raises(Stopped), stop.at_once():
            reached.append("begun after it")
        with pytest.raises(Stopped):
            stop.check()
    assert reached == ["what is put in order", "what the stop leads to"] and stop.reason == "SIGINT"


@pytest.mark.parametrize("error", [None, OSError])
def test_behind_where_nothing_is_lost_a_signal_only_sets_the_flag_again(error: type[OSError] | None) -> None:
    with StopFlag() as stop:
        with suppress(OSError), stop.at_once():
            if error is not None:
                raise error
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_signals_are_held_no_longer_where_what_they_were_held_for_fails() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with suppress(OSError), held_signals():
        assert set(SIGNALS) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise OSError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    code = (
        "import os, signal\nfrom coatnet.runtime.stop import StopFlag\n"
        "with StopFlag() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n    print(stop.requested)"
    )
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


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


def test_a_child_that_is_forked_after_the_flag_keeps_its_parents_handlers() -> None:
    with StopFlag():
        pass
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN else 1)
        _, status = os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert os.waitstatus_to_exitcode(status) == 0


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


# Each in a process of its own: a thread of pytest's that does not hold signals back would be killed by them.
EARLY_AND_LATE = """
import os, signal, threading
from coatnet.runtime.stop import StopFlag, held_signals
with held_signals():
    os.kill(os.getpid(), signal.SIGUSR1)  # while torch is loading, say
    with StopFlag() as stop:
        print(stop.requested, stop.reason)
        loader = threading.Thread(target=threading.Event().wait, daemon=True)
        loader.start()
    os.kill(os.getpid(), signal.SIGTERM)  # too late: everything has been saved
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
INHERITED = """
import os, signal
from coatnet.runtime.stop import StopFlag
os.kill(os.getpid(), signal.SIGTERM)
with StopFlag() as stop:
    print(stop.reason)
"""


def test_a_signal_that_comes_before_the_flag_waits_for_it_and_one_that_comes_after_it_is_dropped() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY_AND_LATE], capture_output=True, text=True, check=True)
    assert done.stdout == "True SIGUSR1\nTrue set()\n"


# SLURM sends SIGTERM at the end of its grace after SIGUSR1, and a user may press Ctrl-C.
IN_THE_MIDDLE = """
import os, signal, sys
from coatnet.runtime.stop import StopFlag

interrupted = set()

def another(frame, event, argument):
    if (frame.f_code, frame.f_lineno) not in interrupted:
        interrupted.add((frame.f_code, frame.f_lineno))
        os.kill(os.getpid(), signal.SIGTERM)
    return another

with StopFlag() as stop:
    sys.settrace(another)
    os.kill(os.getpid(), signal.SIGUSR1)
    sys.settrace(None)
    print(stop.requested)
"""


def test_a_signal_that_comes_at_any_line_of_anothers_handling_does_not_block_the_process() -> None:
    command = [sys.executable, "-c", IN_THE_MIDDLE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_a_program_started_meanwhile_waits_with_signals_too() -> None:
    code = "import subprocess, sys\nfrom coatnet.runtime.stop import held_signals\nwith held_signals():\n"
    code += f"    sys.exit(subprocess.run([sys.executable, '-c', {INHERITED!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SIGTERM\n"
