"""The store: commits checkpoints, finds the newest good one, deletes the superfluous.

Protocol (docs/checkpoint-format.md): every rank writes its file into one temporary directory and fsyncs both;
rank 0 writes the manifest, makes sure that its lease still holds, renames the directory and fsyncs the parent
(coatnet/checkpoint/save.py). A failed save never fails the run: the older checkpoint stays.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from coatnet.checkpoint.format import CheckpointError, replace_facts
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Figures, Retention
from coatnet.checkpoint.save import Save, SaveFailed, write_save
from coatnet.runtime.lease import Lease
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import CHECKPOINT_PREFIX as PREFIX
from coatnet.runtime.whole_files import move_folder, refresh_view, remove_folder


class NotCleared(RuntimeError):
    """A save is committed, but what it makes superfluous is still there."""


class CheckpointStore:
    """One rank's view of a run's checkpoints. All ranks call `save` and `newest` at the same points.

    Args:
        directory: where the checkpoints of the run lie.
        ranks: who writes; rank 0 commits.
        lease: checked before every commit; its epoch goes into the manifest.
        retention: which checkpoints stay.
        timeout_seconds: how long rank 0 waits for the slowest rank's file.
        alarm: called with a line for everything that went wrong and was survived.

    Attributes:
        check_lease: raises LeaseLost, on the main rank, if another job has taken the run over.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ranks: Ranks,
        lease: Lease | None = None,
        retention: Retention | None = None,
        timeout_seconds: float = 600.0,
        alarm: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._ranks, self._lease = ranks, lease
        self.check_lease = lease.check if lease else lambda: None
        self._retention = retention or Retention()
        self._timeout_seconds = timeout_seconds
        self._alarm = alarm or (lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saves = 0
        self._verified: set[int] = set()
        self._figures = Figures(self._retention.best, alarm=self._alarm)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._epoch = lease.epoch if lease else 0
        if ranks.is_main:
            refresh_view(self.directory)
            self._fence_out_others()
        # No rank gets past this before rank 0 has cleared what earlier jobs left: it would clear theirs too.
        self._epoch = ranks.broadcast(self._epoch)

    def save(
        self,
        *,
        step: int,
        samples_seen: int,
        fragments: Iterable[Fragment],
        facts: dict[str, Any],
        wait: bool = False,
    ) -> None:
        """Take a snapshot in host memory and commit it in the background.

        A save that is still under way is waited for first: two snapshots are never held at once.

        Args:
            step, samples_seen: the position; names and orders the checkpoint.
            fragments: this rank's pieces; all ranks together must cover every tensor once.
            facts: the application's JSON (model config, classes, data state, figures).
            wait: return only when this rank's part is committed or has failed.
        """
        self.wait()
        snapshot = [
            Fragment(one.kind, one.name, one.shape, one.start, one.data.detach().to("cpu", copy=True))
            for one in fragments
        ]
        self._saves += 1
        save = Save(self.path(step), self._saves, self._epoch, step, samples_seen, facts)
        self._pending = self._writer.submit(self._write, save, snapshot)
        if wait:
            self.wait()

    def amend(self, step: int, facts: dict[str, Any]) -> None:
        """Let a committed checkpoint tell other facts of the same tensors; all ranks call, rank 0 writes.

        Raises:
            LeaseLost: another job has taken the run over.
        """
        self.wait()
        if self._ranks.is_main:
            try:
                self.check_lease()
                replace_facts(self.path(step) / MANIFEST, facts)
            except (OSError, CheckpointError) as error:
                self._alarm(f"checkpoint {step} still tells what it told: {error}")
            self._figures.forget(self.path(step))

    def wait(self) -> None:
        """Wait for the save under way.

        Raises:
            LeaseLost: another job has taken the run over.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._settle(pending)

    def raise_errors(self) -> None:
        """Surface what happened in the writer, without waiting. Call it once a step.

        Raises:
            LeaseLost: another job has taken the run over.
        """
        if self._lease is not None:
            self._lease.raise_if_lost()
        if self._pending is not None and self._pending.done():
            self.wait()

    def steps(self) -> list[int]:
        """Return the committed steps, oldest first.

        Raises:
            CheckpointError: the directory cannot be read, which a glob would take for an empty one.
        """
        try:
            names = os.listdir(self.directory)
        except OSError as error:
            raise CheckpointError(f"{self.directory}: {error.strerror}; make it readable") from None
        found = (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
        steps = {int(digits) for digits in found if digits.isdecimal()}
        return sorted(step for step in steps if self.path(step).name in names)

    def path(self, step: int) -> Path:
        """Return where a step's checkpoint lies."""
        return self.directory / f"{PREFIX}{step:08d}"

    def newest(self, *, before: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint whose every byte matches, or None in a directory that holds none.

        Rank 0 decides; the ranks share the reading. A broken one is named aloud, passed over and moved out of
        the way once an older one is found: the run will come to its step again.

        Raises:
            CheckpointError: there are checkpoints, but none is whole, or nobody can tell: the run never
                starts at 0 by itself.
        """
        steps, fault = self._ranks.broadcast(self._listing() if self._ranks.is_main else None)
        if fault:
            raise CheckpointError(fault)
        broken: list[int] = []
        for step in reversed(steps):
            if before is not None and step >= before:
                continue
            checkpoint, fault = self._open(step)
            faults = [one for one in self._ranks.gather(fault) if one]
            if not faults:
                self._verified.add(step)
                if self._ranks.is_main:
                    self._set_aside(broken, name="broken")
                return checkpoint
            broken.append(step)
            if self._ranks.is_main:
                self._alarm(f"{faults[0]}; going back to an older checkpoint")
        if steps and before is None:
            raise CheckpointError(
                f"{self.directory}: none of {len(steps)} checkpoints is whole; not starting anew over them. "
                "Restore one, or choose another run.directory"
            )
        return None

    def would_be_best(self, figures: Mapping[str, float]) -> bool:
        """Tell whether a checkpoint with these figures would be the best of all; all ranks ask."""
        own = self._figures.of(figures)
        if math.isnan(own):
            return False
        self.wait()
        others = self._read_figures().values() if self._ranks.is_main else ()
        return bool(self._ranks.broadcast(not any(other >= own for other in others)))

    def abandon(self, *, after: int) -> None:
        """Give up the checkpoints of later steps: the run goes back. Rank 0 alone."""
        self._set_aside([step for step in self.steps() if step > after], name="abandoned")

    def close(self) -> None:
        """Finish the save under way and end the writer."""
        self.wait()
        self._writer.shutdown()

    def _listing(self) -> tuple[list[int], str | None]:
        """Return the committed steps, or what keeps them from being known, to tell it to all ranks."""
        try:
            return self.steps(), None
        except CheckpointError as error:
            return [], str(error)

    def _open(self, step: int) -> tuple[Checkpoint | None, str | None]:
        try:
            share, shares = self._ranks.rank, self._ranks.world_size
            checkpoint = Checkpoint(self.path(step), share=share, shares=shares)
            checkpoint.verify(share=share, shares=shares)
            return checkpoint, None
        except CheckpointError as error:
            return None, str(error)

    def _settle(self, pending: Future[None]) -> None:
        try:
            pending.result()
        except NotCleared as error:
            self._alarm(str(error))
        except (OSError, SaveFailed, CheckpointError) as error:
            self._alarm(f"checkpoint not saved: {error}; the older one stays, the run goes on")

    def _write(self, save: Save, snapshot: list[Fragment]) -> None:
        write_save(
            save,
            snapshot,
            ranks=self._ranks,
            check_lease=self.check_lease,
            timeout_seconds=self._timeout_seconds,
        )
        if self._ranks.is_main:
            try:
                self._retain(save.step)
            except OSError as error:
                raise NotCleared(
                    f"checkpoint {save.step} is saved, older ones could not be deleted: {error}"
                ) from None

    def _retain(self, step: int) -> None:
        """Read the new checkpoint back, then delete what two verified newer ones make superfluous."""
        Checkpoint(self.path(step)).verify()
        self._verified.add(step)
        self._figures.forget(self.path(step))  # of one that was given up
        figures = self._read_figures()
        for old in self._retention.superfluous(self.steps(), verified=self._verified, figures=figures):
            if self._retention.best is not None and old not in figures:
                continue  # it cannot be read now, and may be the best
            self.check_lease()
            remove_folder(self.path(old), grave=self.directory / f".deleted-{old:08d}.{time.time_ns()}")
        for pattern in (".deleted-*", f".broken-{PREFIX}*", f".abandoned-{PREFIX}*"):
            for left in self.directory.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def _set_aside(self, steps: Iterable[int], *, name: str) -> None:
        for step in steps:
            self.check_lease()
            move_folder(self.path(step), self.directory / f".{name}-{self.path(step).name}.{time.time_ns()}")
            self._verified.discard(step)

    def _read_figures(self) -> dict[int, float]:
        return self._figures.read({step: self.path(step) for step in self.steps()})

    def _fence_out_others(self) -> None:
        """Remove earlier jobs' temporary directories: one that still lives cannot rename what is gone.

        Each is renamed first: the other job's rename comes either before, of a whole checkpoint, or too late.
        """
        for left in self.directory.glob(f".{PREFIX}*.tmp"):
            grave = self.directory / f".deleted-{left.name.lstrip('.')}.{time.time_ns()}"
            with suppress(FileNotFoundError):  # committed, or cleared, this very moment
                remove_folder(left, grave=grave)
