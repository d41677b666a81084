"""What a job does to a run directory, step by step as standard input says; every line is answered by one.

    python benchmarks/node_job.py RUN

    acquire LIFE | steps | save STEP | freeze STEP | endless | verify | release

`freeze` stops itself (SIGSTOP) after it has made sure of its lease and before it renames its checkpoint.
`endless` saves until its end and says each step that the store promises to be there from now on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import count
from pathlib import Path

import torch
from virtual_nodes import ANSWER

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost
from coatnet.runtime.ranks import Ranks

_NUMBERS = 50_000


class Job:
    """One job on one run directory."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._lease: Lease | None = None
        self._store: CheckpointStore | None = None

    def obey(self, word: str, argument: str) -> str:
        """Do one thing and return what came of it."""
        try:
            return getattr(self, word)(*argument.split())
        except LeaseHeld as error:
            return f"held: {error}"
        except LeaseLost as error:
            return f"lost: {error}"
        except Exception as error:
            return f"failed: {type(error).__name__}: {error}"

    def acquire(self, life: str) -> str:
        os.environ["COATNET_ATTEMPT"] = f"7.{life}.1"
        self._lease = Lease.acquire(self._run)
        self._store = CheckpointStore(
            self._run / "checkpoints", ranks=Ranks(), lease=self._lease, retention=Retention(10**6)
        )
        return f"acquired {self._lease.epoch}"

    def steps(self) -> str:
        store = self._store or CheckpointStore(self._run / "checkpoints", ranks=Ranks())
        return " ".join(map(str, store.steps()))

    def save(self, step: str) -> str:
        assert self._store is not None
        number = int(step)
        data = torch.arange(_NUMBERS, dtype=torch.float32) + number
        pieces = [Fragment("weight", "w", tuple(data.shape), 0, data)]
        self._store.save(step=number, samples_seen=number, fragments=pieces, facts={}, wait=True)
        newest = self._store.steps()[-1]
        return f"saved {step}" if newest == number else f"failed: {newest} is the newest"

    def freeze(self, step: str) -> str:
        assert self._lease is not None and self._store is not None
        check, checks = self._lease.check, count(1)

        def checked() -> None:
            check()
            if next(checks) == 1:
                say("frozen")
                # To this thread: one to the process may be taken by another, and this one renames meanwhile.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

        self._store.check_lease = checked
        try:
            return self.save(step)
        finally:
            self._store.check_lease = check

    def endless(self) -> str:
        assert self._store is not None
        for step in count(max(self._store.steps(), default=0) + 1):
            said = self.obey("save", str(step))
            say(said)
            if not said.startswith("saved"):
                return "ended"
        raise AssertionError

    def verify(self) -> str:
        """Read everything; say each step with the epoch that wrote it."""
        store = CheckpointStore(self._run / "checkpoints", ranks=Ranks())
        found = [Checkpoint(store.path(step)) for step in store.steps()]
        for checkpoint in found:
            checkpoint.verify()
        return " ".join(f"{one.manifest.step}:{one.manifest.epoch}" for one in found)

    def release(self) -> str:
        assert self._lease is not None
        self._lease.release()
        return "released"


def say(answer: str) -> None:
    """Answer."""
    print(ANSWER + answer, flush=True)


def main() -> None:
    """Obey until standard input ends."""
    torch.set_num_threads(1)
    job = Job(Path(sys.argv[1]))
    say("ready")
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        say(job.obey(word, argument))


if __name__ == "__main__":
    main()
