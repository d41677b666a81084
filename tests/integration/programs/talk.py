"""What the launcher's test runs on every rank: talk to the peers, then stop when asked to, or lose one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

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
    with StopFlag() as stop:
        if task == "lacking":
            if ranks.rank == 1:
                raise RankError("out of memory on rank 1")
            ranks.any(False)
        ranks.barrier(timeout_seconds=30)
        (directory / f"ready{ranks.rank}").touch()
        while not ranks.any(stop.requested):
            time.sleep(0.01)
        (directory / f"stopped{ranks.rank}").write_text(str(stop.reason))
    ranks.stop()


if __name__ == "__main__":
    run_rank(main)
