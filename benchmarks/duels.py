"""Let two jobs fight for one run directory, again and again, and look whether ever two of them wrote.

    python benchmarks/duels.py --duels 200 --seed 1 --json

A third of the duels each: two jobs start at one moment; a job is frozen (SIGSTOP) somewhere in its saves,
taken over, and comes back; a job is frozen at the worst place, after it has made sure of its lease and before
it renames its checkpoint. Jobs are forked and do what rank 0 of a run does: lease, store, saves in the
background. `--commands N` adds duels of the real `coatnet pretrain`, started twice at one moment; how long
the refused one takes is counted from its start.

Expected: two_owners 0, no_owner 0, double_committers 0, broken_checkpoints 0; a refusal takes at most 5 s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch
from patience import until

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost
from coatnet.runtime.ranks import Ranks

DONE, HELD, LOST = 0, 2, 3
BAD = ("two_owners", "no_owner", "double_committers", "broken_checkpoints")
KINDS = ("same moment", "frozen", "frozen before its rename")
_PATIENCE_SECONDS = 60.0
fork = multiprocessing.get_context("fork")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the duels and print the table; the exit status is 0 when never two wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--duels", type=int, default=12)
    parser.add_argument("--commands", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    chance, table = random.Random(options.seed), Table()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="duels-") as folder:
        for number in range(options.duels):
            kind, run = KINDS[number % len(KINDS)], Path(folder) / f"run-{number}"
            if kind == KINDS[0]:
                same_moment(run, table)
            else:
                frozen(run, table, chance=chance, aimed=kind == KINDS[2])
            table.duels += 1
            if not options.json:
                print(f"duel {table.duels}: {kind}", file=sys.stderr, flush=True)
        for number in range(options.commands):
            commands(Path(folder) / f"command-{number}", table)
            table.duels += 1
    result = table.result()
    print(json.dumps(result) if options.json else "\n".join(f"{key:26} {result[key]}" for key in result))
    return int(any(result[key] for key in BAD))


class Table:
    """What was found."""

    def __init__(self) -> None:
        self.duels = self.two_owners = self.no_owner = self.double_committers = self.broken = 0
        self.refusals: list[float] = []
        self.refused_commands: list[float] = []

    def owners(self, statuses: Sequence[int | None]) -> None:
        """Count the ends of a duel of which exactly one may have gone on."""
        owners = sum(status == DONE for status in statuses)
        self.two_owners += owners > 1
        self.no_owner += owners < 1 or not set(statuses) <= {DONE, HELD, LOST}

    def result(self) -> dict[str, Any]:
        """Return the table."""
        return {
            "duels": self.duels,
            "two_owners": self.two_owners,
            "no_owner": self.no_owner,
            "double_committers": self.double_committers,
            "broken_checkpoints": self.broken,
            "slowest_refusal_seconds": round(max(self.refusals, default=0.0), 2),
            "slowest_refused_command_seconds": round(max(self.refused_commands, default=0.0), 2),
        }


class Job:
    """A forked process that does to a run directory what rank 0 does."""

    def __init__(self, run: Path, *, life: int, aimed: bool = False) -> None:
        self.gate, self.owns, self.end = fork.Event(), fork.Event(), fork.Event()
        self.refused_seconds = fork.Value("d", 0.0)
        self.seen = fork.SimpleQueue()  # the steps of others when it had fenced them out
        self.process: ForkProcess = fork.Process(target=self._live, args=(run, life, aimed))
        self.process.start()

    def _live(self, run: Path, life: int, aimed: bool) -> None:
        os.environ["COATNET_ATTEMPT"] = f"7.{life}.1"
        self.gate.wait()
        began = time.monotonic()
        try:
            lease = Lease.acquire(run)
        except LeaseHeld:
            self.refused_seconds.value = time.monotonic() - began
            os._exit(HELD)
        try:
            self._save(run, lease, aimed=aimed)
        except LeaseLost:
            os._exit(LOST)
        lease.release()
        os._exit(DONE)

    def _save(self, run: Path, lease: Lease, *, aimed: bool) -> None:
        check, checks = lease.check, itertools.count(1)

        def checked() -> None:
            check()
            if aimed and next(checks) == 3:
                os.kill(os.getpid(), signal.SIGSTOP)

        lease.check = checked  # type: ignore[method-assign]  # before the store takes it
        store = CheckpointStore(run / "checkpoints", ranks=Ranks(), lease=lease, retention=Retention(10**6))
        known = store.steps()
        self.seen.put(known)
        data = torch.arange(50_000, dtype=torch.float32)
        for step in itertools.count(max(known, default=0) + 1):
            fragment = Fragment("weight", "w", tuple(data.shape), 0, data + lease.epoch)
            store.save(step=step, samples_seen=step, fragments=[fragment], facts={})
            store.raise_errors()
            self.owns.set()
            if self.end.wait(0.001):
                break
        store.close()


def same_moment(run: Path, table: Table) -> None:
    """Start two; the one that wins goes on until the other has given up."""
    jobs = [Job(run, life=1) for _ in range(2)]
    for job in jobs:
        job.gate.set()
    until(lambda: all(job.owns.is_set() or job.process.exitcode is not None for job in jobs), what="a start")
    statuses = finish(jobs)
    table.owners(statuses)
    table.refusals += [
        job.refused_seconds.value for job, status in zip(jobs, statuses, strict=True) if status == HELD
    ]
    judge(run, table, allowed={1: None})


def frozen(run: Path, table: Table, *, chance: random.Random, aimed: bool) -> None:
    """Freeze a job in its saves, let a later life take over, and wake the first one while that saves."""
    first = Job(run, life=1, aimed=aimed)
    first.gate.set()
    assert first.owns.wait(_PATIENCE_SECONDS) and first.process.pid is not None
    first.seen.get()
    if not aimed:
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(first.process.pid, signal.SIGSTOP)
    until(lambda: state_of(first) == "T", what="a freeze")
    second = Job(run, life=2)
    second.gate.set()
    assert second.owns.wait(_PATIENCE_SECONDS)
    time.sleep(chance.uniform(0.0, 0.1))
    os.kill(first.process.pid, signal.SIGCONT)
    until(lambda: first.process.exitcode is not None, what="the end of a job that has lost")
    table.owners([first.process.exitcode, *finish([second])])
    judge(run, table, allowed={1: set(second.seen.get()), 2: None})


def judge(run: Path, table: Table, *, allowed: dict[int, set[int] | None]) -> None:
    """Verify every checkpoint; of a fenced epoch only those may be there that its successor found."""
    store = CheckpointStore(run / "checkpoints", ranks=Ranks())
    for step in store.steps():
        checkpoint = Checkpoint(store.path(step))
        try:
            checkpoint.verify()
        except RuntimeError:
            table.broken += 1
        steps = allowed.get(checkpoint.manifest.epoch, set())
        if steps is not None and step not in steps:
            table.double_committers += 1
            epoch, writer = checkpoint.manifest.epoch, checkpoint.directory
            print(f"{writer} is of epoch {epoch}, whose successor found {sorted(steps)}", file=sys.stderr)
    store.close()


def commands(folder: Path, table: Table) -> None:
    """Start the installed command twice at one moment; each would train for seconds."""
    from kills import CONFIG, write_images

    write_images(folder / "images")
    (folder / "config.yaml").write_text(CONFIG)
    images, run = folder / "images", folder / "run"
    command = [sys.executable, "-m", "coatnet.cli", "pretrain", str(folder / "config.yaml")]
    command += [f"data.train=[{{path: {images}}}]", f"data.evaluate={images}", f"run.directory={run}"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.monotonic()
    started = [subprocess.Popen(command, **quiet) for _ in range(2)]
    until(lambda: any(one.poll() is not None for one in started), what="the end of one")
    if any(one.returncode == HELD for one in started):
        table.refused_commands.append(time.monotonic() - began)
    table.owners([one.wait() for one in started])
    epochs = {Checkpoint(path).manifest.epoch for path in (run / "checkpoints").glob("step-*")}
    if len(epochs) != 1:
        table.double_committers += 1
        print(f"{run} has checkpoints of the epochs {sorted(epochs)}", file=sys.stderr)


def finish(jobs: Sequence[Job]) -> list[int | None]:
    """Ask jobs to end and return their exit statuses."""
    for job in jobs:
        job.end.set()
    for job in jobs:
        job.process.join(_PATIENCE_SECONDS)
    return [job.process.exitcode for job in jobs]


def state_of(job: Job) -> str:
    """Return the letter that the kernel has for a process's state."""
    return Path(f"/proc/{job.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


if __name__ == "__main__":
    sys.exit(main())
