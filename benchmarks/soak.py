"""Train for long without a disturbance, and look whether memory, threads, open files or the step's time grow.

    python benchmarks/soak.py --minutes 45 --json

A run of two ranks (ZeRO-1, fp32, CPU) with everything that comes back: mixtures of images, averaged weights,
evaluation, a transfer signal, saves by the clock, the guard. Every few seconds its processes are looked at;
what is printed are medians of four quarters of the time, without the first tenth, in which all warms up. The
model is tiny, so that a step is mostly its own work and many are taken, where a leak of bytes would show.
Expected: `grown_percent` near 0, the same threads and files, `exit_status` 0 at SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import kills
import psutil

IMAGES = 960
_LOOK_SECONDS = 5.0
_WARM_SHARE = 0.1
_QUARTERS = 4
CONFIG = """
seed: 3
model: {depths: [1, 1, 1, 1, 1], widths: [8, 16, 16, 32, 32], stochastic_depth: 0.1}
norm: {group_images: 4}
augment: {image_size: 32, mixup: 0.2, erasing: 0.2, randaugment_n: 2, randaugment_m: 10}
data: {threads: 1}
optimizer: {learning_rate: 0.0005}
schedule: {warmup: 100 steps}
ema: 0.99
train: {duration: 10000000 steps, global_batch: BATCH, micro_batch: 4}
zero: {stage: 1}
evaluate: {every: 500 steps, transfer: SHARDS}
save: {every: 20 seconds, last: 2}
launch: {ranks: 2}
"""


@dataclass(frozen=True)
class Look:
    """What was seen of a run's processes at one moment, all together."""

    at: float
    step: int
    own_mib: float
    threads: int
    files: int


def main() -> int:
    """Run it and print the table; the exit status is 0 when the run ended well and nothing grew by 2 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, run = Path(name), Path(name, "run")
        kills.write_images(folder / "images", images=IMAGES)
        config = CONFIG.replace("SHARDS", str(folder / "shards")).replace("BATCH", str(kills.GLOBAL_BATCH))
        (folder / "config.yaml").write_text(config)
        shard = [sys.executable, "-m", "coatnet.cli", "shard", str(folder / "images"), str(folder / "shards")]
        subprocess.run(shard, check=True, capture_output=True)
        launcher = kills.start_cold(folder, run)
        looks = list(watch(launcher.pid, run, seconds=60 * options.minutes))
        if launcher.poll() is not None:
            sys.exit((run / "log.txt").read_text()[-3000:])
        launcher.send_signal(signal.SIGTERM)
        status = launcher.wait(timeout=60)
        result = {**table(looks), "kilobytes_per_1000_steps": growth(run), "exit_status": status}
    print(json.dumps(result) if options.json else "\n".join(f"{key:26} {result[key]}" for key in result))
    same = result["threads"][1:] == result["threads"][:-1] and result["files"][1:] == result["files"][:-1]
    return 0 if status == 0 and same and result["grown_percent"] < 2 else 1


def watch(launcher: int, run: Path, *, seconds: float) -> Iterator[Look]:
    """Look at a run's processes every few seconds."""
    began = time.monotonic()
    while (at := time.monotonic() - began) < seconds:
        time.sleep(min(_LOOK_SECONDS, seconds / 40))
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(launcher)
            processes = [first, *first.children(recursive=True)]
            yield Look(
                at=at / seconds,
                step=kills.progress(run),
                own_mib=sum(one.memory_full_info().uss for one in processes) / 2**20,
                threads=sum(one.num_threads() for one in processes),
                files=sum(one.num_fds() for one in processes),
            )


def table(looks: list[Look]) -> dict[str, Any]:
    """Return medians of the quarters, and by how much memory grew from the first to the last."""
    warm = [look for look in looks if look.at >= _WARM_SHARE]
    cuts = [len(warm) * quarter // _QUARTERS for quarter in range(_QUARTERS + 1)]
    quarters = [warm[first:last] for first, last in pairwise(cuts)]
    memory = [statistics.median(look.own_mib for look in quarter) for quarter in quarters]
    return {
        "steps": warm[-1].step,
        "own_mib": [round(value, 1) for value in memory],
        "grown_percent": round(100 * (memory[-1] / memory[0] - 1), 2),
        "threads": [statistics.median(look.threads for look in quarter) for quarter in quarters],
        "files": [statistics.median(look.files for look in quarter) for quarter in quarters],
        "steps_in_quarter": [quarter[-1].step - quarter[0].step for quarter in quarters],
    }


def growth(run: Path) -> float:
    """Return how many kilobytes a run leaves for 1,000 steps, beside its checkpoints."""
    kept = [path for path in run.rglob("*") if path.is_file() and "checkpoint" not in str(path.parent)]
    return round(sum(path.stat().st_size for path in kept) / kills.progress(run), 1)


if __name__ == "__main__":
    sys.exit(main())
