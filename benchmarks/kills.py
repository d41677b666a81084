"""Kill a real pretraining run again and again at random, then compare it with the run that nobody disturbed.

    python benchmarks/kills.py --kills 40 --seed 1 --json

Every life is `coatnet pretrain` with two ranks (ZeRO-1, fp32, CPU). kill -9 hits rank 0, rank 1, both, or the
launcher; half of the kills are aimed into a save, at the moment its temporary directory is there. A life with
no kill left runs to the end. Expected: unrecoverable 0, bit_equal true, samples_lost 0, samples_doubled 0.

Launcher and ranks are forked from this process, which has torch and DeepSpeed loaded: a life starts in one
second instead of ten. `--cold` starts the real command each time, for the recovery time that a user sees.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import torch
from patience import until
from PIL import Image
from warm import warm_up

import coatnet.runtime.launch
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.endings import endings_in_a_line
from coatnet.runtime.parent import die_with_parent
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import read_lines
from pretrain.launch import launch

CLASSES, IMAGES, GLOBAL_BATCH = 4, 240, 24
STEPS = 60
TARGETS = ("rank 0", "rank 1", "both ranks", "launcher")
_START_SECONDS = 120.0
_POLL_SECONDS = 0.001
CONFIG = f"""
seed: 3
model: {{depths: [1, 1, 1, 1, 1], widths: [8, 16, 16, 32, 32], stochastic_depth: 0.1}}
norm: {{group_images: 4}}
augment: {{image_size: 32, mixup: 0.2, erasing: 0.2}}
data: {{threads: 1}}
optimizer: {{learning_rate: 0.002}}
schedule: {{warmup: 5 steps}}
ema: 0.99
train: {{duration: {STEPS} steps, global_batch: {GLOBAL_BATCH}, micro_batch: 4}}
zero: {{stage: 1}}
evaluate: {{every: {STEPS} steps}}
save: {{every: 2 steps, last: 2}}
launch: {{ranks: 2}}
"""

Process = Any  # a Popen or a Forked
Start = Callable[[Path, Path], Process]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and print its table; the exit status is 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        if not options.cold:
            warm_up()
        start = start_cold if options.cold else start_warm
        result = campaign(
            Path(folder), kills=options.kills, seed=options.seed, start=start, quiet=options.json
        )
    print(json.dumps(result) if options.json else "\n".join(f"{key:26} {result[key]}" for key in result))
    good = result["bit_equal"] and not result["unrecoverable"]
    return 0 if good and result["samples_lost"] == result["samples_doubled"] == 0 else 1


def campaign(folder: Path, *, kills: int, seed: int, start: Start, quiet: bool) -> dict[str, Any]:
    """Kill one run `kills` times; a new run begins whenever one has reached its end."""
    chance = random.Random(seed)
    write_images(folder / "images")
    (folder / "config.yaml").write_text(CONFIG)
    shard = [sys.executable, "-m", "coatnet.cli", "shard", str(folder / "images"), str(folder / "shards")]
    subprocess.run(shard, check=True, capture_output=True)
    undisturbed = folder / "undisturbed"
    assert start(folder, undisturbed).wait() == 0, (undisturbed / "log.txt").read_text()
    expected = final_state(undisturbed)

    recoveries: list[float] = []
    unrecoverable, equal, lost, doubled, done, runs = 0, True, 0, 0, 0, 0
    while done < kills:
        run = folder / f"run-{runs}"
        runs += 1
        finished = False
        while not finished:
            victim = chance.choice(TARGETS) if done < kills else None
            status, recovery = live(folder, run, victim, start=start, aimed=done % 2 == 0, chance=chance)
            recoveries += [recovery] if recovery is not None else []
            finished = status == 0
            if status == "killed":
                done += 1
                if not quiet:
                    print(f"kill {done}: {victim}, {progress(run)} steps", file=sys.stderr, flush=True)
            elif not finished:
                unrecoverable += 1
                print((run / "log.txt").read_text()[-3000:], file=sys.stderr)
                break
        if finished:
            found = final_state(run)
            equal &= found["tensors"].keys() == expected["tensors"].keys() and all(
                torch.equal(found["tensors"][key], expected["tensors"][key]) for key in expected["tensors"]
            )
            equal &= found["facts"]["progress"] == expected["facts"]["progress"]
            seen = found["facts"]["progress"]["samples_seen"]
            lost += max(0, STEPS * GLOBAL_BATCH - seen)
            doubled += max(0, seen - STEPS * GLOBAL_BATCH)
            if not json.loads((run / "summary.json").read_text())["every_sample_once"]:
                lost, doubled = lost + 1, doubled + 1
    return {
        "kills": done,
        "unrecoverable": unrecoverable,
        "bit_equal": equal,
        "samples_lost": lost,
        "samples_doubled": doubled,
        "median_recovery_seconds": round(statistics.median(recoveries), 2) if recoveries else None,
    }


def live(
    folder: Path, run: Path, victim: str | None, *, start: Start, aimed: bool, chance: random.Random
) -> tuple[int | str, float | None]:
    """One life: (exit status or "killed", seconds from the start to the first new step)."""
    before = progress(run)
    began = time.monotonic()
    launcher = start(folder, run)
    recovery = None
    while launcher.poll() is None and time.monotonic() - began < _START_SECONDS:
        if progress(run) > before:
            recovery = time.monotonic() - began
            break
        time.sleep(_POLL_SECONDS * 20)
    if victim is None or launcher.poll() is not None:
        return launcher.wait(), recovery if before else None
    if aimed:
        wait_for_save(run, launcher)
        time.sleep(chance.uniform(0.0, 0.02))
    else:
        time.sleep(chance.uniform(0.0, 1.0))
    ranks = (
        [child.pid for child in psutil.Process(launcher.pid).children()] if launcher.poll() is None else []
    )
    if launcher.poll() is not None or len(ranks) < 2:
        return launcher.wait(), recovery if before else None
    targets = {"rank 0": ranks[:1], "rank 1": ranks[1:], "both ranks": ranks, "launcher": [launcher.pid]}
    for process in targets[victim]:
        os.kill(process, signal.SIGKILL)
    launcher.wait()
    # Those that survived end by themselves.
    until(lambda: not any(map(psutil.pid_exists, ranks)), what=f"the end of ranks {ranks}", seconds=10)
    return "killed", recovery if before else None


def start_cold(folder: Path, run: Path) -> Process:
    """Start a life by the real command."""
    with log_of(run) as log:
        command = [sys.executable, "-m", "coatnet.cli", "pretrain", *arguments_of(folder, run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def start_warm(folder: Path, run: Path) -> Process:
    """Start a life by forking the launcher, which forks its ranks; otherwise they run the real code."""
    path, *overrides = arguments_of(folder, run)
    return start_forked(lambda: launch(path, overrides, force=False), run)


def start_forked(work: Callable[[], int], run: Path) -> Forked:
    """Fork a launcher whose words go to the run's log, and whose ranks are forks of it."""
    log = log_of(run)

    def supervise() -> int:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        coatnet.runtime.launch._start_rank = forked_rank  # type: ignore[assignment]
        return work()

    with log:
        return Forked(supervise)


def forked_rank(module: str, arguments: Sequence[str], *, place: dict[str, str], **_: Any) -> Forked:
    """Stand in for the launcher's own start of a rank."""
    parent = os.getpid()

    def work() -> int:
        die_with_parent(parent)
        os.environ.update(place)
        with endings_in_a_line():
            importlib.import_module(module).main(arguments)
        return 0

    return Forked(work)


class Forked:
    """A forked process with the face of a Popen."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def poll(self) -> int | None:
        """Return the exit status, or None while the process lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            time.sleep(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask for the end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def _run(self, work: Callable[[], int]) -> None:
        """Never return into the parent's code."""
        status = 1
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            status = work()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def arguments_of(folder: Path, run: Path) -> list[str]:
    """Return the command line of a life, without the command."""
    shards = folder / "shards"
    data = [f"data.train=[{{path: {shards}}}]", f"data.evaluate={shards}"]
    return [str(folder / "config.yaml"), *data, f"run.directory={run}"]


def log_of(run: Path) -> IO[bytes]:
    """Open a run's log."""
    run.mkdir(exist_ok=True)
    return (run / "log.txt").open("ab")


def progress(run: Path) -> int:
    """Return the newest step that the run has recorded or saved."""
    saved = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")]
    rows = read_lines(run / "metrics.jsonl")
    recorded = max((row["samples_seen"] // GLOBAL_BATCH for row in rows), default=0)
    return max([recorded, *saved])


def wait_for_save(run: Path, launcher: Process) -> None:
    """Wait until a save is under way."""
    while launcher.poll() is None and not any((run / "checkpoints").glob(".step-*.tmp")):
        time.sleep(_POLL_SECONDS)


def final_state(run: Path) -> dict[str, Any]:
    """Return every tensor and the facts of the last checkpoint."""
    checkpoint = CheckpointStore(run / "checkpoints", ranks=Ranks()).newest()
    assert checkpoint is not None
    kinds = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")
    tensors = {
        (kind, name): checkpoint.tensor(kind, name) for kind in kinds for name in checkpoint.names(kind)
    }
    return {"tensors": tensors, "facts": checkpoint.facts}


def write_images(folder: Path, *, images: int = IMAGES) -> None:
    """Write a folder of classes of small noisy JPEGs."""
    generator = np.random.default_rng(0)
    for number in range(images):
        label = number % CLASSES
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 96, (40, 40, 3)) + 40 * label
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:04d}.jpg", quality=90)


if __name__ == "__main__":
    sys.exit(main())
