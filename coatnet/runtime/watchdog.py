"""Ends a rank that hangs, after its stacks have been written down. Knows no step and no model."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coatnet.runtime.absence import Absence
from coatnet.runtime.data_wait import DataWait

EXIT_HANG = 75  # EX_TEMPFAIL: the launcher and SLURM's requeue may try again
_KEPT_STEPS = 1000
_LEAST_STEPS = 20
_POLL_SECONDS = 0.5
_P99_FACTOR = 5.0
_LIKE_THE_FIRST = 1.5  # on cores a step of a large model may take longer than any bound
# Of `hang_seconds`, and at most: before that no rank says or asks anything.
_DOUBTS_AFTER, _MOST_SECONDS_WITHOUT_DOUBT = 1 / 3, 30.0
_SAID_AGAIN_SECONDS = 600.0
_PROMPT_SECONDS = 5.0  # to write the stacks; longer says that the run's file system hung
# Other ranks' watchdogs look at other moments. An end of this one breaks their collectives: they write first.
_LAST_WORDS_SECONDS = 4 * _POLL_SECONDS


class Watchdog:
    """A thread that expects a beat at least every max(`hang_seconds`, 5 × p99 of the steps).

    Until the first beat, and in whatever asks for patience, `start_seconds` are allowed, and to the step
    after a compilation, since other ranks may be compiling still. Time in which this process itself was
    stopped does not count: a suspended job goes on where it was. Nor does time in which a rank waits for data
    that are being fetched.
    """

    def __init__(
        self,
        stacks: Path,
        *,
        hang_seconds: float,
        start_seconds: float,
        data_wait: DataWait | None = None,
        say: Callable[[str], None] = print,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Look from now on, and watch nothing yet.

        Args:
            stacks: the file for them.
            hang_seconds, start_seconds: the least bounds, of a step and of what takes longer.
            data_wait: tells whether any rank waits for data.
            say: is told then.
            look: called every half second from now on, whatever the rank is at.
        """
        self._stacks, self._look = stacks, look
        self._data_wait, self._say, self._said_at = data_wait, say, -_SAID_AGAIN_SECONDS
        self._hang_seconds, self._start_seconds = hang_seconds, start_seconds
        self._steps: deque[float] = deque(maxlen=_KEPT_STEPS)
        self._beaten_at = time.monotonic()
        self._patience_seconds = start_seconds
        self._watching, self._lenient, self._held, self._beats = False, False, 0, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Begin to watch."""
        self._beaten_at, self._watching = time.monotonic(), True

    def beat(self) -> None:
        """Say that a step is done. The first few say little about the others: they warm up."""
        now = time.monotonic()
        took = now - self._beaten_at
        if self._beats:
            self._steps.append(took)
        known = self._beats  # once the window is full its length tells nothing
        self._beats, self._lenient, self._beaten_at = self._beats + 1, False, now
        if known < _LEAST_STEPS:
            slow = max(self._patience_seconds if self._steps else 0.0, _LIKE_THE_FIRST * took)
            self._patience_seconds = max(self._hang_seconds, self._start_seconds / 10, slow)
        elif known % _LEAST_STEPS == 0:
            p99 = sorted(self._steps)[int(len(self._steps) * 0.99)]
            self._patience_seconds = max(self._hang_seconds, _P99_FACTOR * p99)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Wait as long as for the first step: what happens inside is no step; all ranks end it at once."""
        self.hold()
        try:
            yield
        finally:
            self._end()

    def hold(self) -> None:
        """Be patient until `release`; may be nested."""
        self._held += 1

    def breathe(self) -> None:
        """Say that something moves that is no step: an evaluation may take hours, but no batch of it."""
        self._beaten_at = time.monotonic()

    def release(self) -> None:
        """Expect steps again, the next one still with patience: another rank may not be done yet."""
        self._lenient = True
        self._end()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _end(self) -> None:
        self._beaten_at = time.monotonic()
        self._held -= 1

    def _watch(self) -> None:
        absence = Absence(every_seconds=_POLL_SECONDS)
        while not self._stopped.wait(_POLL_SECONDS):
            self._look()
            if absent := absence.seconds():  # or a beat of this very moment were undone
                self._beaten_at += absent
            # In this order: patience that ends meanwhile ends the silence first.
            held, lenient = self._held, self._lenient
            silence = time.monotonic() - self._beaten_at
            if not self._watching:
                continue
            if self._data_wait and not held and self._is_excused(self._data_wait, silence):
                continue
            if silence > (self._start_seconds if held or lenient else self._patience_seconds):
                self._give_up(silence)

    def _is_excused(self, data_wait: DataWait, silence_seconds: float) -> bool:
        """Tell whether a rank waits for data, and begin to count anew if so."""
        if silence_seconds < min(_DOUBTS_AFTER * self._hang_seconds, _MOST_SECONDS_WITHOUT_DOUBT):
            data_wait.forget()
            return False
        reason = data_wait.excuse()
        if reason is None:
            return False
        now = self._beaten_at = time.monotonic()
        if now - self._said_at >= _SAID_AGAIN_SECONDS:
            self._said_at = now
            self._say(f"no step for {silence_seconds:.0f} s, since {reason}")
        return True

    def _give_up(self, silence_seconds: float) -> None:
        began = time.monotonic()
        waiting = f", {self._data_wait.own}" if self._data_wait and self._data_wait.own else ""
        where = self._write_stacks(f"no step for {silence_seconds:.0f} s")
        if time.monotonic() - began > _PROMPT_SECONDS:
            print(f"warning: no step for {silence_seconds:.0f} s, nor did the file system answer", flush=True)
            # It does now, and the step that may have waited for it goes on.
            self._beaten_at = time.monotonic()
            return
        print(f"error: no step for {silence_seconds:.0f} s{waiting}; stacks: {where}", flush=True)
        time.sleep(_LAST_WORDS_SECONDS)
        os._exit(EXIT_HANG)

    def _write_stacks(self, reason: str) -> str:
        """Write down all stacks and return where; to stderr where a full disk takes none."""
        try:
            self._stacks.parent.mkdir(parents=True, exist_ok=True)
            with self._stacks.open("a") as file:
                print(f"{reason}; all stacks of process {os.getpid()}:", file=file)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            return str(self._stacks)
        except OSError as error:
            faulthandler.dump_traceback(2, all_threads=True)
            return f"here, since {error}"
