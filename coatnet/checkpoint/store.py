"""The store: commits checkpoints by manifest and rename, finds the newest good one, deletes the superfluous.

Protocol (docs/checkpoint-format.md): every rank writes its file into one temporary directory, fsyncs both and
tells rank 0 what is in it. That one waits for all, with a bound, writes the manifest, makes sure that its
lease still holds, renames the directory and fsyncs the parent. Words go through the mailbox: a writer thread
needs no collectives, a rank that cannot write can say so, and a thousand ranks make no thousand small files.
A failed save never fails the run: the older checkpoint stays.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from coatnet.checkpoint.format import (
    CheckpointError,
    Manifest,
    RankFile,
    rank_file_from_json,
    write_json,
    write_rank_file,
)
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Figures, Retention
from coatnet.runtime.absence import Absence
from coatnet.runtime.lease import Lease, LeaseLost
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.whole_files import move_folder, refresh_view, remove_folder, sync_folder

_PREFIX = "step-"
_POLL_SECONDS = 0.02
_SPACE_MARGIN = 1.05


class SaveFailed(RuntimeError):
    """One save came to nothing; the run goes on and the older checkpoint stays."""


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
        self._check_lease = lease.check if lease else lambda: None
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
        name = f".{_PREFIX}{step:08d}.epoch{self._epoch}.save{self._saves}.tmp"
        self._pending = self._writer.submit(
            self._write, self.directory / name, snapshot, step=step, samples_seen=samples_seen, facts=facts
        )
        if wait:
            self.wait()

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
        found = (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
        steps = {int(digits) for digits in found if digits.isdecimal()}
        return sorted(step for step in steps if self.path(step).name in names)

    def path(self, step: int) -> Path:
        """Return where a step's checkpoint lies."""
        return self.directory / f"{_PREFIX}{step:08d}"

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
            share = {"share": self._ranks.rank, "shares": self._ranks.world_size}
            checkpoint = Checkpoint(self.path(step), **share)
            checkpoint.verify(**share)
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

    def _write(
        self,
        temporary: Path,
        snapshot: list[Fragment],
        *,
        step: int,
        samples_seen: int,
        facts: dict[str, Any],
    ) -> None:
        rank = self._ranks.rank
        try:
            if self._ranks.is_main:
                self._clear_failed_saves(_save_number(temporary))
            for one in snapshot:
                if not torch.isfinite(one.data).all():
                    raise SaveFailed(f"{one.kind} {one.name} is not finite at step {step}")
            with suppress(FileExistsError):  # `exist_ok` would look whether it is a folder, a thousand times
                temporary.mkdir()
            self._require_space(sum(one.data.numel() * one.data.element_size() for one in snapshot))
            written = write_rank_file(temporary / f"rank-{rank:05d}.safetensors", snapshot)
            sync_folder(temporary)
        except (OSError, SaveFailed) as error:
            self._give_up(temporary, error)
            raise
        if not self._ranks.is_main:
            self._tell(temporary, file=asdict(written))
        else:
            try:
                self._commit(temporary, written, step=step, samples_seen=samples_seen, facts=facts)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            try:
                self._retain(step)
            except OSError as error:
                raise NotCleared(
                    f"checkpoint {step} is saved, older ones could not be deleted: {error}"
                ) from None

    def _give_up(self, temporary: Path, error: Exception) -> None:
        """Tell rank 0 not to wait; remove what was written, which frees the space that was missing."""
        rank = self._ranks.rank
        if self._ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            return
        with suppress(OSError):
            (temporary / f"rank-{rank:05d}.safetensors").unlink()
        self._tell(temporary, fault=str(error))

    def _tell(self, temporary: Path, **word: Any) -> None:
        with suppress(RuntimeError):  # rank 0 is gone: all end
            self._ranks.tell(_word(temporary, self._ranks.rank), json.dumps(word, separators=(",", ":")))

    def _commit(
        self, temporary: Path, own: RankFile, *, step: int, samples_seen: int, facts: dict[str, Any]
    ) -> None:
        others = (self._await_rank(temporary, rank) for rank in range(1, self._ranks.world_size))
        manifest = Manifest(
            step=step,
            samples_seen=samples_seen,
            world_size=self._ranks.world_size,
            epoch=self._epoch,
            files=(own, *others),
            facts=facts,
        )
        write_json(temporary / MANIFEST, asdict(manifest))
        sync_folder(temporary)
        Checkpoint(temporary)  # every file that the manifest names is there, in its size
        self._check_lease()
        try:
            # Never over another: what is at this place can only be a successor's, if we were frozen just now.
            temporary.rename(self.path(step))
        except OSError:
            self._check_lease()
            raise
        sync_folder(self.directory)

    def _await_rank(self, temporary: Path, rank: int) -> RankFile:
        """Wait for a rank's word of its file: over NFS a note there could take a minute to be seen."""
        deadline = time.monotonic() + self._timeout_seconds
        absence = Absence(every_seconds=_POLL_SECONDS)
        while (word := self._ranks.heard(_word(temporary, rank))) is None:
            if not temporary.exists():
                raise LeaseLost(f"{temporary} was removed by a newer job")
            deadline += absence.seconds()  # a suspended job's ranks were all away
            if time.monotonic() > deadline:
                raise SaveFailed(f"rank {rank} did not write within {self._timeout_seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
        told = json.loads(word)
        if "fault" in told:
            raise SaveFailed(f"rank {rank}: {told['fault']}")
        return rank_file_from_json(told["file"])

    def _retain(self, step: int) -> None:
        """Read the new checkpoint back, then delete what two verified newer ones make superfluous."""
        Checkpoint(self.path(step)).verify()
        self._verified.add(step)
        self._figures.forget(self.path(step))  # of one that was given up
        figures = self._read_figures()
        for old in self._retention.superfluous(self.steps(), verified=self._verified, figures=figures):
            if self._retention.best is not None and old not in figures:
                continue  # it cannot be read now, and may be the best
            self._check_lease()
            remove_folder(self.path(old), grave=self.directory / f".deleted-{old:08d}.{time.time_ns()}")
        for pattern in (".deleted-*", f".broken-{_PREFIX}*", f".abandoned-{_PREFIX}*"):
            for left in self.directory.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def _clear_failed_saves(self, save: int) -> None:
        """Remove what ranks wrote for a save that had failed by then: the next one needs the room."""
        for left in self.directory.glob(f".{_PREFIX}*.epoch{self._epoch}.save*.tmp"):
            if _save_number(left) < save:  # a rank that is quick may have begun with a later one
                shutil.rmtree(left, ignore_errors=True)

    def _set_aside(self, steps: Iterable[int], *, name: str) -> None:
        for step in steps:
            self._check_lease()
            move_folder(self.path(step), self.directory / f".{name}-{self.path(step).name}.{time.time_ns()}")
            self._verified.discard(step)

    def _read_figures(self) -> dict[int, float]:
        return self._figures.read({step: self.path(step) for step in self.steps()})

    def _require_space(self, own_bytes: int) -> None:
        """Fail before writing rather than in the middle; ranks are taken to write alike."""
        status = os.statvfs(self.directory)
        free = status.f_bavail * status.f_frsize
        wanted = int(own_bytes * self._ranks.world_size * _SPACE_MARGIN)
        if free < wanted:
            raise SaveFailed(
                f"{self.directory}: {free / 2**20:,.1f} MiB free, a checkpoint needs {wanted / 2**20:,.1f}"
            )

    def _fence_out_others(self) -> None:
        """Remove earlier jobs' temporary directories: one that still lives cannot rename what is gone.

        Each is renamed first: the other job's rename comes either before, of a whole checkpoint, or too late.
        """
        for left in self.directory.glob(f".{_PREFIX}*.tmp"):
            grave = self.directory / f".deleted-{left.name.lstrip('.')}.{time.time_ns()}"
            with suppress(FileNotFoundError):  # committed, or cleared, this very moment
                remove_folder(left, grave=grave)


def _save_number(temporary: Path) -> int:
    return int(temporary.name.rpartition(".save")[2].removesuffix(".tmp"))


def _word(temporary: Path, rank: int) -> str:
    return f"{temporary.name}/{rank}"
