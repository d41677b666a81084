"""Runs of the workers on forked ranks, to which something happens on the way."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d
from waiting import wait_until

from coatnet.checkpoint import save as save_module
from coatnet.config import UserError
from coatnet.runtime.endings import Distrusted
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import write_atomically
from coatnet.training.optimizer import ClippedAdamW
from coatnet.training.run import TrainingRun
from finetune.run import FinetuneRun
from finetune.worker import main as finetune
from pretrain import run as run_module
from pretrain.trainer import Trainer
from pretrain.worker import main


def pretrain_run(
    arguments: list[str],
    stop_after: int = 0,
    spike_at: int = 0,
    spike_steps: int = 1,
    kill_in_rollback: bool = False,
    fill_after: int = 0,
    ballast: str = "",
    stale_after: int = 0,
    committed: str = "",
    flip_after: int = 0,
    flipped_rank: int = 1,
) -> str:
    """Run the worker of `coatnet pretrain`.

    Args:
        arguments: the worker's.
        stop_after: so many steps into this life, rank 0 gets a SIGTERM.
        spike_at: the first `spike_steps` steps from this position report a hundred times their loss, once.
        kill_in_rollback: rank 0 gets a SIGKILL in the moment in which it would note what a rollback excludes.
        fill_after: so many steps into this life, rank 0 fills its disk with the file `ballast`; the answer is
            then the run's error.
        stale_after: so many steps into this life, rank 1 can write nothing to its disk any more; likewise.
        committed: the checkpoint that either waits for: it is written beside the steps.
        flip_after: so many steps into this life, a bit flips in a weight of rank `flipped_rank`; likewise.
    """
    take_step, taken, spiked = Trainer.step, [], []

    def step(self: Trainer, *given: Any, **options: Any) -> Any:
        if options["learning_rate"] > 0:  # not the rehearsal
            taken.append(None)
        if stop_after and len(taken) == stop_after and self.engine.ranks.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        if fill_after and len(taken) == fill_after and self.engine.ranks.is_main:
            wait_until(Path(committed).exists, what=committed)
            fill(Path(ballast))
        if stale_after and len(taken) == stale_after and self.engine.ranks.rank == 1:
            wait_until(Path(committed).exists, what=committed)
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
        run_module.write_atomically = kill_at_exclusions
    try:
        main(arguments)
    except (UserError, Distrusted) as error:
        if not (fill_after or stale_after or flip_after):
            raise
        return str(error)
    return "finished"


def counted_run(arguments: list[str], folder: str) -> dict[str, dict[str, int]]:
    """Run the worker and count this rank's collectives of ours, their bytes and what it asks of `folder`.

    Returns:
        calls: by collective and who called it; bytes: of the last one; files: by operation.
    """
    calls: Counter[str] = Counter()
    size: dict[str, int] = {}
    files: Counter[str] = Counter()
    inside: list[str] = []  # one of them may be made of others

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(Ranks, name)

        def call(self: Ranks, *given: Any, **options: Any) -> Any:
            key = f"{name} of {sys._getframe(1).f_code.co_name}"
            if not inside:
                calls[key] += 1
                if given and isinstance(given[0], torch.Tensor):
                    size[key] = given[0].numel() * given[0].element_size()
            inside.append(name)
            try:
                return method(self, *given, **options)
            finally:
                inside.pop()

        return call

    def look(event: str, given: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and folder in str(given[0]):
            files[event] += 1

    for name in ("all_reduce_sum", "gather", "broadcast", "any", "barrier"):
        setattr(Ranks, name, counted(name))
    sys.addaudithook(look)
    main(arguments)
    return {"calls": dict(calls), "bytes": size, "files": dict(files)}


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

    os.mkdir = os.unlink = save_module.write_rank_file = stale  # type: ignore[assignment]


WORKERS: dict[str, tuple[Any, Any]] = {"pretrain": (Trainer, main), "finetune": (FinetuneRun, finetune)}


def lone_refusal(worker: str, arguments: list[str]) -> str:
    """Run the worker without sharding; rank 1's copy of the sixth step's gradient holds a NaN."""
    update, taken, (_, run) = ClippedAdamW.step, [], WORKERS[worker]
    rehearsed = [None] * (worker == "pretrain")

    def step(self: ClippedAdamW, closure: Any = None) -> None:
        taken.append(None)
        if len(taken) == len(rehearsed) + 6 and os.environ["RANK"] == "1":
            self.param_groups[0]["params"][0].grad[0] = float("nan")
        update(self, closure)

    ClippedAdamW.step = step  # type: ignore[method-assign]
    try:
        run(arguments)
    except Distrusted as error:
        return str(error)
    return "finished"


def hanging_run(worker: str, arguments: list[str]) -> str:
    """Run the worker; rank 1 never comes back from its fifth step."""
    trainer, run = WORKERS[worker]
    take_step, taken = trainer.step, []

    def step(self: Any, *given: Any, **options: Any) -> Any:
        taken.append(None)
        if len(taken) == 6 and os.environ["RANK"] == "1":
            a_driver_that_hangs()
        return take_step(self, *given, **options)

    trainer.step = step
    if worker == "finetune":  # no config sets its bounds
        begin = TrainingRun.__init__
        TrainingRun.__init__ = partialmethod(begin, hang_seconds=3.0, start_seconds=60.0)  # type: ignore[method-assign,assignment]
    run(arguments)
    return "finished"


def suspended_run(worker: str, arguments: list[str]) -> str:
    """Run the worker; rank 1 is stopped in its fifth step for longer than torch's collectives would wait."""
    trainer, run = WORKERS[worker]
    take_step, be_patient, taken, bound = trainer.step, Ranks.wait_patiently, [], timedelta(seconds=2)

    def after_a_hasty_start(self: Ranks) -> None:
        for group in distributed_c10d._world.pg_map:
            distributed_c10d._set_pg_timeout(bound, group)
        distributed_c10d._get_default_timeout = lambda backend: bound  # of groups to come
        be_patient(self)

    def step(self: Any, *given: Any, **options: Any) -> Any:
        taken.append(None)
        if len(taken) == 5 and os.environ["RANK"] == "1":
            subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        return take_step(self, *given, **options)

    trainer.step, Ranks.wait_patiently = step, after_a_hasty_start  # type: ignore[attr-defined,method-assign]
    run(arguments)
    return "finished"


def a_driver_that_hangs() -> None:
    threading.Event().wait()


def finetune_run(
    arguments: list[str],
    stop_after: int = 0,
    kill_after: int = 0,
    stop_in_evaluation: bool = False,
    leave_after: int = 0,
    fill_after: int = 0,
    ballast: str = "",
    committed: str = "",
) -> str:
    """Run the worker of `coatnet finetune`.

    Args:
        arguments: the worker's.
        stop_after: so many steps into this life, rank 0 gets a SIGTERM.
        kill_after: so many steps into this life, every rank gets a SIGKILL.
        stop_in_evaluation: rank 0 gets a SIGTERM in each evaluation.
        leave_after: so many steps into this life, rank 1 waits for its batch in vain and is told to stop.
        fill_after: so many steps into this life, rank 0 fills its disk with the file `ballast`; the answer is
            then the run's error.
        committed: the checkpoint that it waits for before: it is written beside the steps.
    """
    take_step, taken, evaluate = FinetuneRun.take, [], FinetuneRun.evaluate

    def told_to_stop(self: FinetuneRun, state: Any) -> None:
        if self.ranks.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        evaluate(self, state)

    def step(self: FinetuneRun, *given: Any, **options: Any) -> Any:
        taken.append(None)
        if len(taken) == stop_after and self.ranks.is_main:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(taken) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(taken) == fill_after and self.ranks.is_main:
            wait_until(Path(committed).exists, what=committed)
            fill(Path(ballast))
        return take_step(self, *given, **options)

    def batches(self: FinetuneRun, *given: Any) -> Any:
        for number, batch in enumerate(follow(self, *given)):
            if number == leave_after and self.ranks.rank == 1:
                yield None
                return
            yield batch

    FinetuneRun.take = step  # type: ignore[method-assign]
    if leave_after:
        follow, FinetuneRun.batches = FinetuneRun.batches, batches  # type: ignore[method-assign]
    if stop_in_evaluation:
        FinetuneRun.evaluate = told_to_stop  # type: ignore[method-assign]
    try:
        finetune(arguments)
    except UserError as error:
        if not fill_after:
            raise
        return str(error)
    return "finished"
