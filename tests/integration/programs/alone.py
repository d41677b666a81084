"""What the launcher's test runs on each of two ranks that need no torch, which takes seconds to load."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from coatnet.config import UserError
from coatnet.runtime.endings import run_rank
from coatnet.runtime.stop import StopFlag


def main(arguments: Sequence[str]) -> None:
    task, directory = arguments[0], Path(arguments[1])
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "")))
    (directory / f"pid{rank}").write_text(str(os.getpid()))
    other = directory / f"pid{1 - rank}"
    while not other.exists() or not other.read_text():
        time.sleep(0.01)
    if task == "mistaken":
        raise UserError("what every rank met")
    if task == "refused":
        if rank == 0:  # later than the launcher's next look at the ranks, which lets the other's id go
            while Path("/proc", other.read_text()).exists():
                time.sleep(0.01)
        raise UserError("what both ranks met")
    if task == "patient":
        (directory / f"ready{rank}").touch()
        signal.pause()
    with StopFlag() as stop:
        if task == "crash" and rank == 1:
            sys.exit(3)
        if task == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while task != "stop" or not stop.requested:
            time.sleep(0.01)
        (directory / f"stopped{rank}").write_text(str(stop.reason))


if __name__ == "__main__":
    run_rank(main)
