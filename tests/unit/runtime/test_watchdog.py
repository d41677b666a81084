"""A rank that hangs writes down its stacks and ends; one that is slow for a reason does not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coatnet.runtime.watchdog import EXIT_HANG, Watchdog

HANGING = """
import sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from coatnet.runtime import watchdog as module
from coatnet.runtime.data_wait import WAITS, DataWait
from coatnet.runtime.stop import StopFlag
from coatnet.runtime.watchdog import Watchdog

module._POLL_SECONDS, module._LAST_WORDS_SECONDS = 0.1, 0.4  # a fifth of what a run has

def a_thread_that_waits(): time.sleep(60)
def a_step_that_never_ends(): time.sleep(60)

threading.Thread(target=a_thread_that_waits, daemon=True).start()
words = {WAITS: "rank 0 waits for its batch"}
waits = DataWait(SimpleNamespace(distributed=False), lambda: words, stop=StopFlag())
watchdog = Watchdog(Path(sys.argv[1]), hang_seconds=0.2, start_seconds=4.0, data_wait=waits)
watchdog.start()
watchdog.beat()
with watchdog.patience():
    time.sleep(0.7)  # after a beat alone 0.4 were a hang
watchdog.beat()
print("patient", flush=True)
a_step_that_never_ends()
"""

STOPPED = """
import sys, time
from pathlib import Path
from coatnet.runtime.watchdog import Watchdog

watchdog = Watchdog(Path(sys.argv[1]) / "stacks", hang_seconds=1.5, start_seconds=1.5)
watchdog.start()
print("watching", flush=True)
began = time.monotonic()
while time.monotonic() - began < 3.0:  # stopped in here
    watchdog.beat()
    time.sleep(0.1)
print("went on", flush=True)
"""

STALLED = """
import os, sys, time
from pathlib import Path
from coatnet.runtime import watchdog
from coatnet.runtime.watchdog import Watchdog

watchdog._PROMPT_SECONDS = 1.0
stacks = Path(sys.argv[1]) / "stacks"
os.mkfifo(stacks)  # to open it waits, as a file system does whose server is down
watchdog = Watchdog(stacks, hang_seconds=1.0, start_seconds=1.0)
watchdog.start()

def writes_stacks():
    frame = sys._current_frames().get(watchdog._thread.ident)
    while frame is not None and frame.f_code.co_name != "_give_up":
        frame = frame.f_back
    return frame is not None

while not writes_stacks():  # a step that waits for the same server
    time.sleep(0.05)
time.sleep(1.2)  # too long to be prompt
words = stacks.open()
for _ in range(25):
    watchdog.beat()
    time.sleep(0.1)
print("went on after", words.readline(), flush=True)
"""


@pytest.mark.slow
def test_a_step_that_waits_for_a_file_system_that_hangs_is_no_hang_of_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STALLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "nor did the file system answer" in done.stdout
    assert "went on after no step for" in done.stdout


@pytest.mark.slow
def test_a_hang_ends_the_process_after_all_stacks_are_written(tmp_path: Path) -> None:
    stacks = tmp_path / "logs" / "stacks-rank0.txt"
    began = time.monotonic()
    command = [sys.executable, "-c", HANGING, str(stacks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_HANG and time.monotonic() - began < 30
    assert "patient" in done.stdout
    assert f" s, rank 0 waits for its batch; stacks: {stacks}\n" in done.stdout, "nobody fetches it"
    text = stacks.read_text()
    assert "a_step_that_never_ends" in text and "a_thread_that_waits" in text


@pytest.mark.slow
def test_a_hang_whose_stacks_find_no_room_ends_the_process_and_tells_them_where_it_can() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING, "/dev/full"], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_HANG
    assert "no step for" in done.stdout and "No space left on device" in done.stdout
    assert "a_step_that_never_ends" in done.stderr and "a_thread_that_waits" in done.stderr


@pytest.mark.slow
def test_a_process_that_was_stopped_itself_is_no_hang(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"watching\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.0)  # longer than a second without a beat, and than a busy machine lets a thread wait
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said == b"went on\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("coatnet.runtime.watchdog.time.monotonic", lambda: now[0])
    return now


def steps(watchdog: Watchdog, clock: list[float], *durations: float) -> None:
    for duration in durations:
        clock[0] += duration
        watchdog.beat()


def test_the_patience_is_thirty_seconds_or_five_times_the_slowest_hundredth(
    tmp_path: Path, clock: list[float]
) -> None:
    watchdog = Watchdog(tmp_path / "stacks", hang_seconds=30.0, start_seconds=1800.0)
    watchdog._beaten_at = clock[0]
    assert watchdog._patience_seconds == 1800.0
    steps(watchdog, clock, 100.0)  # the first step says nothing about the others
    assert watchdog._patience_seconds == 180.0
    steps(watchdog, clock, *[2.0] * 200)
    assert watchdog._patience_seconds == 30.0
    steps(watchdog, clock, *[10.0] * 20)
    assert watchdog._patience_seconds == pytest.approx(50.0)


def test_a_full_window_is_looked_through_at_every_twentieth_step_as_well(
    tmp_path: Path, clock: list[float]
) -> None:
    watchdog = Watchdog(tmp_path / "stacks", hang_seconds=30.0, start_seconds=1800.0)
    steps(watchdog, clock, *[2.0] * 2001)
    assert len(watchdog._steps) == 1000 and watchdog._patience_seconds == 30.0
    steps(watchdog, clock, *[10.0] * 19)
    assert watchdog._patience_seconds == 30.0
    steps(watchdog, clock, 10.0)
    assert watchdog._patience_seconds == 50.0


def test_what_is_no_step_does_not_count_as_one(tmp_path: Path, clock: list[float]) -> None:
    watchdog = Watchdog(tmp_path / "stacks", hang_seconds=30.0, start_seconds=1800.0)
    steps(watchdog, clock, 1.0, 1.0)
    with watchdog.patience(), watchdog.patience():
        clock[0] += 500.0
    assert watchdog._held == 0
    steps(watchdog, clock, 1.0)
    assert list(watchdog._steps) == [1.0, 1.0]


def test_the_step_after_a_compilation_may_wait_for_another_ranks_and_the_one_after_a_save_may_not(
    tmp_path: Path, clock: list[float]
) -> None:
    watchdog = Watchdog(tmp_path / "stacks", hang_seconds=30.0, start_seconds=1800.0)
    with watchdog.patience():
        pass
    assert not watchdog._lenient
    watchdog.hold()
    watchdog.release()
    with watchdog.patience():
        pass
    assert watchdog._lenient
    steps(watchdog, clock, 100.0)
    assert not watchdog._lenient


def test_a_step_as_slow_as_the_first_is_no_hang(tmp_path: Path, clock: list[float]) -> None:
    watchdog = Watchdog(tmp_path / "stacks", hang_seconds=600.0, start_seconds=3600.0)
    watchdog._beaten_at = clock[0]
    steps(watchdog, clock, 1000.0)
    assert watchdog._patience_seconds == 1500.0
    steps(watchdog, clock, 900.0)
    assert watchdog._patience_seconds == 1500.0
    steps(watchdog, clock, *[1.0] * 20)
    assert watchdog._patience_seconds == 4500.0  # of 21 steps the 99th percentile is the longest


def test_each_batch_of_a_long_evaluation_counts_as_no_step(tmp_path: Path, clock: list[float]) -> None:
    watchdog = Watchdog(tmp_path / "stacks", hang_seconds=30.0, start_seconds=1800.0)
    with watchdog.patience():
        for _ in range(3):
            clock[0] += 1700.0
            watchdog.breathe()
            assert watchdog._beaten_at == clock[0]
    assert not watchdog._steps


class Watched(Watchdog):
    """A watchdog that says by what silence it would have ended the process, and looks often."""

    def __init__(self, folder: Path, **parts: Any) -> None:
        self.given_up: list[float] = []
        self._looks = threading.Semaphore(0)
        super().__init__(
            folder / "stacks", hang_seconds=30.0, start_seconds=1800.0, look=self._looks.release, **parts
        )

    def _give_up(self, silence_seconds: float) -> None:
        self.given_up.append(silence_seconds)
        self._stopped.set()

    def gives_up(self) -> bool:
        """Wait until it has looked at what is so now."""
        while self._looks.acquire(blocking=False):
            pass
        for _ in range(2):  # the first look may have begun before
            self._looks.acquire(timeout=0.0 if self._stopped.is_set() else 5.0)
        return bool(self.given_up)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coatnet.runtime.watchdog._POLL_SECONDS", 0.002)
    no_absence = SimpleNamespace(seconds=lambda: 0.0)  # a clock that jumps looks like one
    monkeypatch.setattr("coatnet.runtime.watchdog.Absence", lambda *, every_seconds: no_absence)


@pytest.mark.usefixtures("often")
def test_a_silence_is_a_hang_beyond_the_bound_of_what_goes_on(tmp_path: Path, clock: list[float]) -> None:
    watchdog = Watched(tmp_path)

    def hangs_after(seconds: float) -> bool:
        clock[0] += seconds
        return watchdog.gives_up()

    assert not hangs_after(10_000.0), "nothing is watched yet"
    watchdog.start()
    assert not hangs_after(1799.0)
    steps(watchdog, clock, *[1.0] * 21)
    assert not hangs_after(29.0)
    with watchdog.patience():
        assert not hangs_after(1700.0)
    assert not hangs_after(29.0)
    watchdog.hold()
    assert not hangs_after(1700.0)
    watchdog.release()
    assert not hangs_after(1700.0)  # another rank may be compiling still
    watchdog.beat()
    assert hangs_after(31.0) and watchdog.given_up == [31.0]
    watchdog.stop()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("held", [False, True])
def test_waiting_for_data_is_asked_about_where_a_step_is_late_and_told_once_in_ten_minutes(
    tmp_path: Path, clock: list[float], held: bool
) -> None:
    said: list[str] = []
    excuses: list[str | None] = [None]
    data_wait = SimpleNamespace(excuse=lambda: excuses[0], forget=lambda: None, own="")
    watchdog = Watched(tmp_path, data_wait=data_wait, say=said.append)
    watchdog.start()
    steps(watchdog, clock, *[1.0] * 21)
    excuses[0] = "rank 1 waits: far/shard"
    if held:
        watchdog.hold()
    for seconds in (9.0, 11.0, 11.0, 600.0):
        clock[0] += seconds
        assert not watchdog.gives_up()
    if held:
        assert not said, "what is no step has patience"
    else:
        assert said == [f"no step for {silent} s, since rank 1 waits: far/shard" for silent in (20, 600)]
    excuses[0] = None
    clock[0] += 2000.0
    assert watchdog.gives_up()
    watchdog.stop()


@pytest.mark.usefixtures("often")
def test_patience_that_ends_while_the_watchdog_looks_ends_no_run(tmp_path: Path, clock: list[float]) -> None:
    class EndsIt:
        """Asked between the look at the clock and the verdict."""

        def __bool__(self) -> bool:
            if ending.is_set():
                ending.clear()
                stack.close()
            return False

    ending, stack = threading.Event(), ExitStack()
    watchdog = Watched(tmp_path, data_wait=EndsIt())
    watchdog.start()
    steps(watchdog, clock, *[1.0] * 21)
    stack.enter_context(watchdog.patience())
    clock[0] += 1700.0
    assert not watchdog.gives_up()
    ending.set()
    assert not watchdog.gives_up() and not ending.is_set() and not watchdog._held
    watchdog.stop()
