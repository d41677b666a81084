"""What the launcher's test runs on every rank: talk to the peers, then do as told."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from coatnet.config import UserError
from coatnet.runtime.endings import RankError, run_rank
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.stop import StopFlag


def main(arguments: Sequence[str]) -> None:
    task, directory = arguments[0], Path(arguments[1])
    ranks = Ranks.start(timeout_seconds=60)
    assert ranks.gather({"rank": ranks.rank}) == [{"rank": rank} for rank in range(ranks.world_size)]
    own = torch.full((ranks.rank + 1, 2), float("-inf") if ranks.rank else 0.5)
    rows = [0.5] + [float("-inf")] * (ranks.world_size * (ranks.world_size + 1) // 2 - 1)
    assert ranks.rows(own)[:, 1].tolist() == rows
    assert ranks.broadcast(["from", ranks.rank]) == ["from", 0]
    assert ranks.any(ranks.rank == ranks.world_size - 1) and not ranks.any(False)
    (directory / f"pid{ranks.rank}").write_text(str(os.getpid()))
    ranks.barrier(timeout_seconds=30)
    with StopFlag() as stop:
        if task == "crash" and ranks.rank == 1:
            sys.exit(3)
        if task == "killed" and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "refused":
            if (
                ranks.is_main
            ):  # later than the launcher's next look at the ranks, which lets the other's id go
                other = Path("/proc", (directory / "pid1").read_text())
                while other.exists():
                    time.sleep(0.01)
            raise UserError("what both ranks met")
        if task == "mistaken":
            raise UserError("what every rank met")
        if task == "lacking":
            if ranks.rank == 1:
                raise RankError("out of memory on rank 1")
            ranks.any(False)
        if task == "stop":
            (directory / f"ready{ranks.rank}").touch()
            while not ranks.any(stop.requested):
                time.sleep(0.01)
            (directory / f"stopped{ranks.rank}").write_text(str(stop.reason))
        elif task != "talk":
            time.sleep(60)
    ranks.stop()


if __name__ == "__main__":
    run_rank(main)
