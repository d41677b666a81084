"""The lease on a run directory: one job at a time, and a fencing epoch for those that were thought dead."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from pathlib import Path

from coatnet.config import UserError
from coatnet.runtime.run_directory import write_atomically

_BEAT_SECONDS = 1.0
# A holder on another host is believed dead after this long without a beat, seen on our own monotonic clock.
_SILENCE_SECONDS = 4.0
_ATTEMPT_VARIABLE = "COATNET_ATTEMPT"  # job id, life, try
_ATTEMPT = re.compile(r"\d+\.(\d+)\.(\d+)")


class LeaseHeld(UserError):
    """Another job holds the run directory."""


class LeaseLost(RuntimeError):
    """A newer job has taken the run directory over: this one must not write into it any more."""


class Lease:
    """The right to write into a run directory, kept alive by a thread that beats once a second."""

    def __init__(self, path: Path, *, epoch: int, token: str) -> None:
        self.path, self.epoch, self._token = path, epoch, token
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def acquire(cls, directory: Path) -> Lease:
        """Take the lease, or find within five seconds that it is held.

        A later start of the same run under SLURM, as its token tells, waits for no earlier one: SLURM
        would not have started it without holding that for dead. What is left of it is fenced.

        Raises:
            LeaseHeld: a living job has it; the message names host and process.
        """
        path = directory / "lease.json"
        directory.mkdir(parents=True, exist_ok=True)
        known = _read(path)
        if known is not None and not _is_outranked(known) and _is_alive(path, known):
            raise LeaseHeld(
                f"{directory}: held by process {known['pid']} on {known['host']}; "
                "wait for it, cancel it, or choose another run.directory"
            )
        lease = cls(path, epoch=(known or {}).get("epoch", 0) + 1, token=uuid.uuid4().hex)
        lease._write(0)
        lease.check()
        lease._thread.start()
        return lease

    def check(self) -> None:
        """Make sure that the lease is still ours, right before something is committed.

        Raises:
            LeaseLost: it is not.
        """
        known = _read(self.path)
        if known is None or known["token"] != self._token:
            raise LeaseLost(f"{self.path}: taken over by {known['host'] if known else 'an unknown job'}")

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        known = _read(self.path)
        if known is not None and known["token"] == self._token:
            self._write(known["beat"], released=True)

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(_BEAT_SECONDS):
            known = _read(self.path)
            if known is None or known["token"] != self._token:
                return
            beat += 1
            self._write(beat)

    def _write(self, beat: int, *, released: bool = False) -> None:
        record = {
            "epoch": self.epoch,
            "token": self._token,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "beat": beat,
            "released": released,
            "attempt": os.environ.get(_ATTEMPT_VARIABLE, ""),
        }
        write_atomically(self.path, json.dumps(record) + "\n")


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _is_outranked(known: dict) -> bool:
    """Return whether this process belongs to a later life than the holder, or to a later try of it."""
    theirs, ours = (
        _ATTEMPT.fullmatch(text) for text in (known.get("attempt", ""), os.environ.get(_ATTEMPT_VARIABLE, ""))
    )
    if theirs is None or ours is None:
        return False
    return tuple(map(int, ours.groups())) > tuple(map(int, theirs.groups()))


def _is_alive(path: Path, known: dict) -> bool:
    if known["released"]:
        return False
    if known["boot"] == _boot_id():
        return _started(known["pid"]) == known["started"]
    deadline = time.monotonic() + _SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_BEAT_SECONDS / 4)
        now = _read(path)
        if now is None or now["released"]:
            return False
        if (now["token"], now["beat"]) != (known["token"], known["beat"]):
            return True
    return False


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks: a process id alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
