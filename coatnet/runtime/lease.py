"""The lease on a run directory: one job at a time, and a fencing epoch for those that were thought dead.

`RUN/lease` holds a file named by its epoch, made by exclusive creation: of two that start at one moment one
wins. The holder of the newest epoch owns the run and removes the files of earlier ones. A job only writes
into the file of its own epoch, so that one that was frozen and comes back can overwrite nothing of its
successor's; it finds its own gone. Over NFS that is seen at once, since opening asks the server, whereas a
new name in a folder may stay unseen for a minute.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from coatnet.config import UserError

_BEAT_SECONDS = 1.0
# A holder on another host is believed dead after this long without a beat, seen on our own monotonic clock.
_SILENCE_SECONDS = 4.0
_ATTEMPT_VARIABLE = "COATNET_ATTEMPT"  # job id, life, try
# The record of a holder that was found silent: while it is the same, a start's ranks need not wait again.
_SILENT_VARIABLE = "COATNET_SILENT"
_ATTEMPT = re.compile(r"\d+\.(\d+)\.(\d+)")
_PREFIX = "epoch-"
_RELEASED = "released"
_ENDED = ("Z", "X")
_STATE_CHARACTERS = 12  # the second line: beats are written in place, which needs no space on a full disk


class LeaseHeld(UserError):
    """Another job holds the run directory."""


class LeaseLost(RuntimeError):
    """A newer job has taken the run directory over: this one must not write into it any more."""


class Lease:
    """The right to write into a run directory, kept alive by a thread that beats once a second."""

    def __init__(self, directory: Path, *, epoch: int) -> None:
        self.epoch = epoch
        self._directory, self._path = directory, _file_of(directory, epoch)
        self._state_offset = 0
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def acquire(cls, directory: Path) -> Lease:
        """Take the lease, or find within five seconds that it is held.

        A later start of the same run under SLURM, as its token tells, waits for no earlier one: SLURM
        would not have started it without holding that for dead. What is left of it is fenced.

        Raises:
            LeaseHeld: a living job has it; the message names host and process.
        """
        (directory / "lease").mkdir(parents=True, exist_ok=True)
        while True:
            # The very next epoch: one that another took since then was not judged, and must make us fail.
            lease = cls(directory, epoch=cls.require_free(directory) + 1)
            if lease._claim():
                lease._thread.start()
                return lease

    @classmethod
    def require_free(cls, directory: Path) -> int:
        """Make sure, within five seconds, that no living job holds the run, and return the newest epoch.

        Raises:
            LeaseHeld: one does.
        """
        epoch = newest_epoch(directory)
        if epoch == 0:
            return epoch
        path = _file_of(directory, epoch)
        known = _read(path)
        if known is not None and _is_outranked(known):
            return epoch
        if _is_alive(path, known):
            known = _read(path) or {"pid": "?", "host": "?"}
            raise LeaseHeld(
                f"{directory}: held by process {known['pid']} on {known['host']}; "
                "wait for it, cancel it, or choose another run.directory"
            )
        return epoch

    def check(self) -> None:
        """Make sure that the lease is still ours, right before something is committed.

        Raises:
            LeaseLost: it is not.
        """
        if not self._is_ours():
            self._lost.set()
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """Look at what the beating thread saw last, which costs nothing.

        Raises:
            LeaseLost: a newer job has the run, or its directory is gone.
        """
        if self._lost.is_set():
            if not self._path.parent.is_dir():
                raise LeaseLost(f"{self._directory}: was moved or removed")
            known = _read(_file_of(self._directory, newest_epoch(self._directory)))
            by = f"process {known['pid']} on {known['host']}" if known else "another job"
            raise LeaseLost(f"{self._directory}: taken over by {by}")

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join()
        with suppress(OSError):  # whoever comes next finds this process dead
            self._write_state(_RELEASED)

    def _claim(self) -> bool:
        """Make the file of our epoch; False if somebody else was first, or went past us meanwhile."""
        record = {
            "epoch": self.epoch,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "attempt": os.environ.get(_ATTEMPT_VARIABLE, ""),
        }
        head = json.dumps(record).encode() + b"\n"
        self._state_offset = len(head)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, head + _state(0))
            os.fsync(descriptor)
        except OSError:  # an empty file would be waited for
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        if newest_epoch(self._directory) != self.epoch:
            return False
        for earlier in _epochs(self._directory):
            if earlier < self.epoch:
                with suppress(OSError):
                    _file_of(self._directory, earlier).unlink()
        return True

    def _is_ours(self) -> bool:
        """Ask the file system whether no successor has come.

        Raises:
            OSError: it does not answer.
        """
        if newest_epoch(self._directory) > self.epoch:
            return False
        try:
            os.close(os.open(self._path, os.O_RDONLY))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        return True

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(_BEAT_SECONDS):
            beat += 1
            with suppress(OSError):  # the next beat may succeed
                if not self._is_ours():
                    self._lost.set()
                    return
                self._write_state(beat)

    def _write_state(self, state: int | str) -> None:
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, _state(state), self._state_offset)
        finally:
            os.close(descriptor)


def _file_of(directory: Path, epoch: int) -> Path:
    return directory / "lease" / f"{_PREFIX}{epoch:08d}"


def newest_epoch(directory: Path) -> int:
    """Return the epoch of the job that owns a run directory, or owned it last; 0 where none did."""
    return max(_epochs(directory), default=0)


def is_held(directory: Path) -> bool:
    """Return whether a living job holds a run directory; that takes up to five seconds to tell."""
    try:
        Lease.require_free(directory)
    except LeaseHeld:
        return True
    return False


def _epochs(directory: Path) -> list[int]:
    try:  # not by glob, to which a folder that cannot be read is empty: the next epoch would be another's
        names = os.listdir(directory / "lease")
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
    return [int(epoch) for epoch in found if epoch.isdigit()]


def _state(state: int | str) -> bytes:
    return str(state).rjust(_STATE_CHARACTERS).encode() + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    """Return a holder's record with its state, or None while it is being written."""
    try:
        record, state = path.read_text().splitlines()
        return {**json.loads(record), "state": state.strip()}
    except (OSError, ValueError):
        return None


def _is_outranked(known: dict[str, Any]) -> bool:
    """Return whether this process belongs to a later life than the holder, or to a later try of it."""
    theirs, ours = (
        _ATTEMPT.fullmatch(text)
        for text in (str(known.get("attempt", "")), os.environ.get(_ATTEMPT_VARIABLE, ""))
    )
    if theirs is None or ours is None:
        return False
    return tuple(map(int, ours.groups())) > tuple(map(int, theirs.groups()))


def _is_alive(path: Path, known: dict[str, Any] | None) -> bool:
    """Judge a holder by its process on this host, by its beats on another.

    One that is still writing its record is waited for. Silence is what a file system that answers does not
    tell: where it hangs, as over NFS while the server is restarted, the holder cannot beat either. Who was
    silent for so long before, and has not beaten since, is not waited for again.
    """
    looked_at = time.monotonic()
    deadline = looked_at + _SILENCE_SECONDS
    first = known
    silent = known and f"{path.absolute()} {json.dumps(known)}"
    while True:
        if known is not None:
            if known["state"] == _RELEASED:
                return False
            if known["boot"] == _boot_id():
                return _started(known["pid"]) == known["started"]
            if first is not None and known["state"] != first["state"]:
                return True
            if silent and os.environ.get(_SILENT_VARIABLE) == silent:
                return False
        if looked_at > deadline:  # not the present time: this process may have been stopped since then
            if silent:
                os.environ[_SILENT_VARIABLE] = silent
            return False
        time.sleep(_BEAT_SECONDS / 4)
        looked_at = time.monotonic()
        known = _read(path)
        took = time.monotonic() - looked_at
        deadline += took if took < _SILENCE_SECONDS else took + _SILENCE_SECONDS
        first = first or known


def _boot_id() -> str:
    """Name what a process id is good in: this boot of the machine and, in a container, its own processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks: a process id alone may be another's by now.

    One that has ended and that nobody has waited for yet is none any more: in a container whose first process
    does not wait for orphans it would stay for ever.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in _ENDED else fields[18]
    except (OSError, ValueError, IndexError):
        return None
