"""Runs and pipelines under an operator's random commands and a cluster's faults, on a real SLURM.

    .venv/bin/python benchmarks/operators.py --trials 20 --seed 1

A trial is one run, or every third time a pipeline, of stand-ins for training (tests/integration/slurm) under
a random layout and way of continuing. What happens to it is drawn: warnings, requeues, scancel, holds,
preemption, crashes, dead, frozen and drained nodes, a killed batch script, a dead controller, cancelling,
submissions while it runs and two at once. After every event `coatnet status` has to agree with the queue.
Then the cluster is mended, and the run submitted as docs/slurm.md says until it is done: its weights have to
be those of a run that nothing happened to, no stage may have begun before its turn, no start may have written
between another one's writes, and no job may be left. Exit status 0 if so. Needs root, for /etc/hosts.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration" / "slurm"))
from cluster import slurm
from cluster.cancel import cancel_run
from cluster.status import RunStatus, read_status
from coatnet.config import UserError

from fake_cluster import FakeCluster
from runs import Run, resubmit, submit_stages

_STEPS, _PACE_SECONDS = 600, 0.04
_MOST_EVENTS = 12
_PAUSES = [0.0, 0.2, 1.0, 3.0, 12.0]
_MENDED_SECONDS = 300
_IN_QUEUE = {"running", "pending", "requeued", "completing", "configuring", "requeue_hold", "suspended"}
_MARKED = {"done", "cancelled", "held"}
Jobs = list[tuple[str, str, str]]  # id, state, reason


class Trial:
    """What happens to the jobs of some run directories, and what has to hold of them."""

    def __init__(self, cluster: FakeCluster, folder: Path, *, seed: int) -> None:
        self.cluster, self.folder, self.random = cluster, folder, random.Random(seed)
        self.lost: set[str] = set()  # nodes
        self.frozen: set[str] = set()
        self.controller_is_away = False

    # what the two kinds of trial do in their own ways

    def submit(self, *, release: bool = False) -> None:
        """Submit everything that is not done, at first or again."""
        raise NotImplementedError

    def directories(self) -> list[Path]:
        """Return the run directories."""
        raise NotImplementedError

    def check_end(self) -> None:
        """See that what came out is right."""
        raise NotImplementedError

    # the course of a trial

    def play(self) -> None:
        """Submit, let things happen, mend everything and see that it ends well."""
        self.submit()
        for _ in range(self.random.randint(3, _MOST_EVENTS)):
            time.sleep(self.random.choice(_PAUSES))
            self.happen()
            if not self.controller_is_away:
                self.check_status()
        self.mend()
        self.finish()

    def happen(self) -> None:
        """Let something happen that can."""
        anything: list[Callable[[], None]] = [
            self.warn, self.warn, self.warn, self.requeue, self.scancel, self.cancel, self.submit_twice,
            self.hold, self.preempt, self.kill_ranks, self.kill_batch_script, self.kill_node,
            self.freeze_node, self.drain_node, self.kill_controller,
        ]  # fmt: skip
        if self.controller_is_away:
            event: Callable[[], None] = self.start_controller
        elif self.jobs():
            event = self.random.choice(anything)
        else:
            event = self.submit_anew
        self.tell(event.__name__.replace("_", " "))
        event()

    def mend(self) -> None:
        """Bring everything up again."""
        self.tell("mending")
        if self.controller_is_away:
            self.start_controller()
        for name in self.frozen:
            self.cluster.thaw_node(name)
        for name in self.lost | self.frozen:
            self.cluster.revive_node(name)
        self.cluster.wait_for(lambda: not self.cluster.sick_nodes(), seconds=60, what="sound nodes")
        for job_id, _, reason in self.jobs():
            if reason != "JobHeldUser" or isinstance(self, RunTrial):
                self.cluster.client("scontrol", "release", job_id, check=False)

    def finish(self) -> None:
        """Do what the guide says to each state until all is done and no job is left."""
        deadline = time.monotonic() + _MENDED_SECONDS
        while True:
            found, jobs = self.status()
            if all(one.state == "done" for one in found) and not jobs:
                break
            assert time.monotonic() < deadline, (found, jobs)
            advised = [one for one in found if "submit the pipeline again" in one.detail]
            for one in found:
                if "scontrol release" in one.detail:
                    self.cluster.client("scontrol", "release", one.job_id)
            if not jobs or (advised and all(state == "PENDING" for _, state, _ in jobs)):
                self.check_status()
                self.submit(release=True)
            time.sleep(0.5)
        self.check_end()

    def check_status(self) -> None:
        """See that the status is what the queue and the markers say."""
        found, jobs = self.status()
        ids = {job_id for job_id, _, _ in jobs}
        for one in found:
            self.tell(f"status: {one.state} {one.job_id} ({one.detail or one.last_error})")
        self.tell(f"queue: {jobs}")
        for one in found:
            own = [state for job_id, state, _ in jobs if job_id == one.job_id]
            marked = {name for name in _MARKED if (Path(one.directory) / name).exists()}
            if marked:
                assert one.state in marked, one
            elif one.state in _IN_QUEUE:
                assert own and ("RUNNING" in own) == (one.state == "running"), one
                ids.discard(one.job_id)
            else:
                assert not own, one
        if not any((Path(one.directory) / name).exists() for one in found for name in _MARKED):
            running = {job_id for job_id, state, _ in jobs if state == "RUNNING"}
            assert not running & ids, f"jobs that no status tells of: {running & ids}"

    def status(self) -> tuple[list[RunStatus], Jobs]:
        """Return the states, and the queue that was the same before and after."""
        while True:
            before = self.jobs()
            queue = slurm.queue()
            found = [read_status(directory, queue=queue) for directory in self.directories()]
            if self.jobs() == before:
                return found, before

    def jobs(self) -> Jobs:
        """Return the jobs as the queue has them, but for those that stand for other users."""
        printed = self.cluster.client("squeue", "--noheader", "--format=%i %j %T %r", check=False)
        rows = [line.split(maxsplit=3) for line in printed.splitlines()]
        return [(row[0], row[2], row[3]) for row in rows if row[1] != "other"]

    def tell(self, words: str) -> None:
        """Print what happens."""
        print(f"  {time.strftime('%H:%M:%S')} {words}", flush=True)

    def layout(self, *, nodes: int = 3) -> dict[str, Any]:
        """Return how to run this time."""
        modes = ["requeue", "chain", "chain", "none"]
        return {"nodes": self.random.randint(1, nodes), "continuation": self.random.choice(modes)}

    # what an operator does

    def submit_anew(self) -> None:
        """Submit what has ended in some way."""
        self.submit(release=self.random.random() < 0.7)

    def submit_twice(self) -> None:
        """Submit from two terminals at once."""
        other = threading.Thread(target=self.submit, kwargs={"release": True})
        other.start()
        self.submit()
        other.join()

    def warn(self) -> None:
        """Tell what runs that its time is over."""
        for job_id, state, _ in self.jobs():
            if state == "RUNNING":
                self.cluster.client("scancel", "--signal=USR1", "--batch", job_id, check=False)

    def requeue(self) -> None:
        """Put what runs back into the queue."""
        for job_id, state, _ in self.jobs():
            if state == "RUNNING":
                self.cluster.client("scontrol", "requeue", job_id, check=False)

    def scancel(self) -> None:
        """Cancel one of the jobs by hand, whichever."""
        self.cluster.client("scancel", self.random.choice(self.jobs())[0], check=False)

    def cancel(self) -> None:
        """Cancel a run as the guide says."""
        try:
            cancel_run(self.random.choice(self.directories()))
        except UserError as error:
            self.tell(f"refused: {error}")

    def hold(self) -> None:
        """Hold what waits."""
        for job_id, state, _ in self.jobs():
            if state == "PENDING" and isinstance(self, RunTrial):
                self.cluster.client("scontrol", "hold", job_id, check=False)

    # what happens to a cluster

    def preempt(self) -> None:
        """Let others come first for a while."""
        sbatch = ["sbatch", "--parsable", "--partition=high", "--nodes=1-4", "--exclusive", "--time=1"]
        self.cluster.client(*sbatch, "--job-name=other", "--output=/dev/null", "--wrap=sleep 3")

    def kill_ranks(self) -> None:
        """Let ranks crash."""
        self.cluster.kill_ranks(self.node())

    def kill_batch_script(self) -> None:
        """Kill the batch scripts."""
        for name in self.cluster.names:
            if name not in self.frozen:
                self.cluster.kill_batch_script(name)

    def kill_node(self) -> None:
        """Cut a node's power."""
        name = self.node()
        self.lost.add(name)
        self.cluster.kill_node(name)

    def freeze_node(self) -> None:
        """Cut a node off."""
        name = self.node()
        self.frozen.add(name)
        self.cluster.freeze_node(name)

    def drain_node(self) -> None:
        """Take a node out of service."""
        name = self.node()
        self.lost.add(name)
        self.cluster.client("scontrol", "update", f"nodename={name}", "state=drain", "reason=test")

    def kill_controller(self) -> None:
        """Kill SLURM's controller, while it has a job to remember."""
        lasting = [job_id for job_id, state, _ in self.jobs() if state in {"PENDING", "RUNNING"}]
        if not lasting:
            return
        try:
            self.cluster.kill_controller(job_id=self.random.choice(lasting))
            self.controller_is_away = True
        except AssertionError as error:  # the job has ended meanwhile
            self.tell(str(error))

    def start_controller(self) -> None:
        """Start it again."""
        self.cluster.start_controller()
        self.controller_is_away = False

    def node(self) -> str:
        """Return a node, rather a sound one."""
        sound = [name for name in self.cluster.names if name not in self.lost | self.frozen]
        return self.random.choice(sound or self.cluster.names)


class RunTrial(Trial):
    """One training run."""

    def __init__(self, cluster: FakeCluster, folder: Path, *, seed: int) -> None:
        super().__init__(cluster, folder, seed=seed)
        self.run = Run(cluster, folder / "run", _STEPS)

    def submit(self, *, release: bool = False) -> None:
        site = self.layout()
        options = (f"step_seconds={_PACE_SECONDS}", "save_every=10", "lease=1")
        queued = bool(self.jobs())
        try:
            resubmit(self.run, release=release, options=options, time="01:00:00", **site)
            self.tell(f"submitted as job {self.run.job_id}: {site}")
            assert not queued, "a second job of one run was queued"
        except UserError as error:
            self.tell(f"refused: {error}")

    def directories(self) -> list[Path]:
        return [self.run.directory]

    def check_end(self) -> None:
        assert self.run.value == self.run.expected, "the weights are not those of an undisturbed run"
        attempts = [line.split()[1] for line in (self.run.directory / "steps.log").read_text().splitlines()]
        turns = [one for one, before in zip(attempts, [None, *attempts], strict=False) if one != before]
        assert len(turns) == len(set(turns)), f"two starts wrote by turns: {turns}"
        self.tell(f"done in {len(self.run.lives)} lives and {len(turns)} starts")


class PipelineTrial(Trial):
    """Four stages, of which one waits for two."""

    AFTER = {"a": [], "b": ["a"], "c": ["b"], "d": ["a"]}

    def __init__(self, cluster: FakeCluster, folder: Path, *, seed: int) -> None:
        super().__init__(cluster, folder, seed=seed)
        modes = ["requeue", "chain", "chain"]
        self.modes = {name: self.random.choice(modes) for name in self.AFTER}

    def submit(self, *, release: bool = False) -> None:
        try:
            jobs = submit_stages(
                self.cluster, self.folder, after=self.AFTER, modes=self.modes, release=release
            )
            self.tell(f"submitted {self.modes}: {jobs}")
        except UserError as error:
            self.tell(f"refused: {error}")

    def directories(self) -> list[Path]:
        return [self.folder / name for name in self.AFTER]

    def check_end(self) -> None:
        ended: set[str] = set()
        for line in (self.folder / "order").read_text().splitlines():
            what, name = line.split()
            if what == "begins":
                assert set(self.AFTER[name]) <= ended, f"{name} began before its turn"
            else:
                ended.add(name)
        self.tell("done in order")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bad: list[int] = []
    for seed in range(options.seed, options.seed + options.trials):
        began = time.monotonic()
        kind = PipelineTrial if seed % 3 == 0 else RunTrial
        print(f"trial {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="operators-") as folder:
            cluster = FakeCluster(deadly=True)
            os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
            try:
                cluster.start()
                kind(cluster, Path(folder), seed=seed).play()
            except Exception:  # told, with what the batch scripts said; the next trial goes on
                traceback.print_exc()
                for log in sorted(Path(folder).glob("*/logs/job-*.log")):
                    print(f"--- {log}\n{log.read_text()}", flush=True)
                bad.append(seed)
            finally:
                cluster.stop()
        verdict = "bad" if seed in bad else "good"
        print(f"trial {seed}: {verdict}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{options.trials} trials, {len(bad)} bad{': ' if bad else ''}{', '.join(map(str, bad))}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
