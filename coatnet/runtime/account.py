"""The account of time: every second of a rank belongs to one class, kept over restarts. Imports no torch.

Each rank has a file with one line of fixed width, its totals of this life, rewritten in place every two
seconds (with many ranks less often): a killed process leaves the last totals that it wrote. What they come to
is for `coatnet.runtime.lives` to say.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coatnet.runtime.absence import Absence
from coatnet.runtime.lease import newest_epoch
from coatnet.runtime.lives import CLASSES, LINE_BYTES, gather_earlier
from coatnet.runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from coatnet.runtime.ranks import Ranks

_FLUSH_SECONDS = 2.0
_WRITES_A_SECOND = 32  # of all ranks: each opens a file of the run, which is work for one metadata server
_LIFE = re.compile(rb'\{"life":(\d+),')
_START_TIME_FIELD = 19  # of proc(5)'s stat, counted after the command


class TimeAccount:
    """A stack of classes on a monotonic clock: entering one stops the clock of the one around it.

    Time outside of every `measure` belongs to `start` before the first step and to `idle` afterwards.

    Attributes:
        life: the number of this start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        life: int,
        age_seconds: float = 0.0,
        flush_seconds: float = 0.0,
        anew: bool = False,
    ) -> None:
        """Open a life's account.

        Args:
            folder: the run's.
            rank: this one.
            life: the number of this start, the same on all ranks; later ones have higher numbers.
            age_seconds: time that has passed in this process already; it belongs to `start`.
            flush_seconds: how often the totals are written at least, once the account is kept.
            anew: what the rank's file holds is known elsewhere.
        """
        self._flush_seconds = flush_seconds or _FLUSH_SECONDS
        self._anew = anew
        self._file = folder / f"rank-{rank:05d}.jsonl"
        self._rank, self.life = rank, life
        self._seconds = dict.fromkeys(CLASSES, 0.0)
        self._seconds["start"] = age_seconds
        self._stack = ["start"]
        self._since = time.monotonic()
        self._began = time.time() - age_seconds
        self._epoch_of_clock = self._began + age_seconds - self._since
        self._offset: int | None = None
        self._samples_seen = 0
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="account", daemon=True)

    @classmethod
    def of_run(cls, run: RunDirectory, *, ranks: Ranks) -> TimeAccount:
        """Begin a life of a run, which this process was started for; all ranks call this.

        Lives are numbered by the epochs of the run's lease: a clock may be set back between two of them.
        """
        begun = (newest_epoch(run.path), gather_earlier(run.account)) if ranks.is_main else None
        life, anew = ranks.broadcast(begun)
        account = cls(
            run.account,
            rank=ranks.rank,
            life=life,
            age_seconds=process_age_seconds(),
            flush_seconds=max(_FLUSH_SECONDS, ranks.world_size / _WRITES_A_SECOND),
            anew=anew,
        )
        account.flush(samples_seen=0)
        account._keeper.start()
        return account

    def close(self) -> None:
        """Write the totals for the last time."""
        self._closed.set()
        if self._keeper.is_alive():
            self._keeper.join()
        self._write_totals()

    @contextmanager
    def measure(self, name: str, *, inside: str | None = None) -> Iterator[None]:
        """Count the time of the block to class `name`; with `inside`, only where that class is running."""
        if inside is not None and inside != self.counting:
            yield
            return
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    @property
    def counting(self) -> str:
        """The class for which the clock runs."""
        return self._stack[-1]

    def enter(self, name: str) -> None:
        """Begin to count to class `name`, until `leave`."""
        assert name in CLASSES, name
        with self._lock:
            self._settle()
            self._stack.append(name)

    def leave(self) -> None:
        """Go back to the class around the present one."""
        with self._lock:
            self._settle()
            self._stack.pop()

    def shift(self, seconds: float, *, source: str, target: str) -> None:
        """Count seconds to another class: some are known only later, such as those of a GPU."""
        with self._lock:
            self._settle()
            seconds = min(seconds, self._seconds[source])
            self._seconds[source] -= seconds
            self._seconds[target] += seconds

    def started(self) -> None:
        """Say that the start is over: what is not measured from now on is idle."""
        with self._lock:
            self._settle()
            self._stack[0] = "idle"

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each class so far in this life."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    def reached(self, samples_seen: int) -> None:
        """Say how far the run is, for when the totals are written next."""
        self._samples_seen = samples_seen

    def flush(self, *, samples_seen: int) -> None:
        """Write this life's totals."""
        self.reached(samples_seen)
        self._write_totals()

    def _keep(self) -> None:
        """Write the totals every so often, whatever the rank is at; while it was stopped it was idle."""
        absence, before = Absence(every_seconds=self._flush_seconds), self.seconds()
        while not self._closed.wait(self._flush_seconds):
            absent = absence.seconds()
            if absent:
                now = self.seconds()
                stopped_in = max(CLASSES, key=lambda name: now[name] - before[name])
                self.shift(absent, source=stopped_in, target="idle")
            before = self.seconds()
            self._write_totals()

    def _write_totals(self) -> None:
        with self._lock:
            row = {
                "life": self.life,
                "rank": self._rank,
                "began": round(self._began, 3),
                # Not the clock on the wall, which may be set meanwhile: the classes would not add up to it.
                "ended": round(self._epoch_of_clock + time.monotonic(), 3),
                "samples_seen": self._samples_seen,
                "seconds": {name: round(value, 3) for name, value in self.seconds().items()},
            }
        with suppress(OSError):  # a full disk: the next write holds the same totals and more
            self._write(json.dumps(row, separators=(",", ":")).encode())

    def _write(self, text: bytes) -> None:
        assert len(text) < LINE_BYTES
        descriptor = self._open()
        try:
            if self._anew:
                os.ftruncate(descriptor, 0)
                self._anew = False
            if self._offset is not None:
                there = _LIFE.match(os.pread(descriptor, LINE_BYTES, self._offset))
                if there and int(there[1]) > self.life:
                    return  # this job was thought dead, and a later life has begun the file anew
            else:
                self._offset = -(-os.fstat(descriptor).st_size // LINE_BYTES) * LINE_BYTES
            os.pwrite(descriptor, text.ljust(LINE_BYTES - 1) + b"\n", self._offset)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT
        try:
            return os.open(self._file, flags, 0o666)
        except FileNotFoundError:  # the first time; asking each time is work for a shared file system
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self._file, flags, 0o666)

    def _settle(self) -> None:
        now = time.monotonic()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


def process_age_seconds() -> float:
    """Return how long this process has been there: its imports belong to the start as well."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_seconds = int(fields[_START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_seconds)
