"""Runs of `coatnet pretrain` on forked ranks, to which something happens on the way."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from coatnet.checkpoint import store
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.runtime.endings import Distrusted
from coatnet.runtime.run_directory import write_atomically
from pretrain import parts
from pretrain.trainer import Trainer
from pretrain.worker import main


def pretrain_run(
    arguments: list[str],
    stop_after: int = 0,
    spike_at: int = 0,
    spike_steps: int = 1,
    kill_in_rollback: bool = False,
    disk_is_full: bool = False,
    fill_after: int = 0,
    ballast: str = "",
    stale_after: int = 0,
    flip_after: int = 0,
    flipped_rank: int = 1,
) -> str:
    """Run the worker of `coatnet pretrain`.

    Args:
        arguments: the worker's.
        stop_after: so many steps into this life, rank 0 gets a SIGTERM.
        spike_at: the first `spike_steps` steps from this position report a hundred times their loss, once.
        kill_in_rollback: rank 0 gets a SIGKILL in the moment in which it would note what a rollback excludes.
        disk_is_full: no checkpoint finds room; the answer is then the run's error.
        fill_after: so many steps into this life, rank 0 fills its disk with the file `ballast`; likewise.
        stale_after: so many steps into this life, rank 1 can write nothing to its disk any more; likewise.
        flip_after: so many steps into this life, a bit flips in a weight of rank `flipped_rank`; likewise.
    """
    take_step, taken, spiked = Trainer.step, [], []

    def step(self: Trainer, *given: Any, **options: Any) -> Any:
        if options["learning_rate"] > 0:  # not the rehearsal
            taken.append(None)
        if stop_after and len(taken) == stop_after and self.engine.ranks.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        if fill_after and len(taken) == fill_after and self.engine.ranks.is_main:
            fill(Path(ballast))
        if stale_after and len(taken) == stale_after and self.engine.ranks.rank == 1:
            lose_the_disk()
        result = take_step(self, *given, **options)
        if flip_after and len(taken) == flip_after and self.engine.ranks.rank == flipped_rank:
            next(self.engine.module.parameters()).data.view(torch.int32).view(-1)[0] ^= 1
        if 0 < spike_at <= options["samples_seen"] and len(spiked) < spike_steps:
            spiked.append(None)
            return dataclasses.replace(result, losses=[100 * loss for loss in result.losses])
        return result

    Trainer.step = step  # type: ignore[method-assign]
    if kill_in_rollback:
        parts.write_atomically = kill_at_exclusions
    if disk_is_full:
        CheckpointStore._require_space = no_space  # type: ignore[method-assign]
    try:
        main(arguments)
    except (UserError, Distrusted) as error:
        if not (disk_is_full or fill_after or stale_after or flip_after):
            raise
        return str(error)
    return "finished"


def kill_at_exclusions(path: Path, text: str) -> None:
    if path.name == "exclusions.json":
        os.kill(os.getpid(), signal.SIGKILL)
    write_atomically(path, text)


def fill(ballast: Path) -> None:
    """Write until there is no room for another byte."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def lose_the_disk() -> None:
    """Let every call by which this rank writes a checkpoint, or a word about it, fail."""

    def stale(*given: Any, **options: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    os.mkdir = os.unlink = store.write_rank_file = stale  # type: ignore[assignment]


def no_space(self: CheckpointStore, own_bytes: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
