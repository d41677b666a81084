"""A job that keeps a training run's protocol in 60 lines, so that the machine around it is tested in seconds.

`stand_in.py train DIRECTORY steps=N step_seconds=S save_every=K fault=STATUS@STEP` under srun. Its "weights"
are a number folded over the steps, its "checkpoints" are folders with a manifest. Rank 1 of every try ends
with the fault's status. With `asked_at=STEP` the first life waits there until it is asked to stop, however
late that comes on a busy machine; with `deaf=1` as well it hears nothing, as in a save that takes too long.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from coatnet.runtime.lease import Lease
from coatnet.runtime.run_directory import RunDirectory


def fold(value: int, step: int) -> int:
    """Return the state after one more step."""
    return (value * 6364136223846793005 + step) % 2**64


def newest(directory: Path) -> tuple[int, int]:
    """Return (step, value) of the newest checkpoint."""
    found = [json.loads(path.read_text()) for path in (directory / "checkpoints").glob("*/manifest.json")]
    last = max(found, key=lambda manifest: manifest["step"], default={"step": 0, "value": 1})
    return last["step"], last["value"]


def save(directory: Path, *, step: int, value: int) -> None:
    """Write a checkpoint: rank 0 only."""
    target = directory / "checkpoints" / f"step-{step:08d}"
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / "manifest.part"
    temporary.write_text(json.dumps({"step": step, "value": value, "samples_seen": step * 8}))
    temporary.replace(target / "manifest.json")


def main() -> int:
    directory = Path(sys.argv[2])
    options = dict(item.split("=", 1) for item in sys.argv[3:])
    rank, run = int(os.environ["SLURM_PROCID"]), RunDirectory(directory)
    asked: list[int] = []
    is_first = os.environ["COATNET_ATTEMPT"].split(".")[1] == "1"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        # The careless save nothing when they are told to end: a life without progress.
        signal.signal(
            number, lambda *caught: os._exit(1) if "careless" in options else asked.append(caught[0])
        )
        if is_first and "deaf" in options:
            signal.signal(number, signal.SIG_IGN)
    lease = Lease.acquire(directory) if rank == 0 and "lease" in options else None
    step, value = newest(directory)
    status, _, at = options.get("fault", "").partition("@")
    asked_at = int(options.get("asked_at", -1)) if is_first else -1
    print(f"rank {rank} starts at step {step} on {os.environ['SLURMD_NODENAME']}", flush=True)
    while step < int(options["steps"]):
        if status and rank == 1 and step >= int(at):
            os._exit(int(status))
        while step == asked_at and not asked:
            time.sleep(0.02)
        time.sleep(float(options.get("step_seconds", "0.02")))
        step, value = step + 1, fold(value, step)
        if lease is not None:
            lease.check()
        if rank == 0:
            with (directory / "steps.log").open("a") as log:
                print(step, os.environ["COATNET_ATTEMPT"], file=log)
            if step % int(options.get("save_every", "20")) == 0 or asked:
                save(directory, step=step, value=value)
        if asked:
            if rank == 0:
                run.mark("stopped", attempt=os.environ["COATNET_ATTEMPT"], step=step)
            return 0
    if rank == 0:
        save(directory, step=step, value=value)
        run.mark("done", step=step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
