"""One save: each rank writes its file and tells rank 0 what is in it; that one waits for all and commits.

Words go through the mailbox: a writer thread needs no collectives, a rank that cannot write can say so, and a
thousand ranks make no thousand small files.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from coatnet.checkpoint.format import (
    Manifest,
    RankFile,
    manifest_to_json,
    rank_file_from_json,
    write_json,
    write_rank_file,
)
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint
from coatnet.runtime.absence import Absence
from coatnet.runtime.lease import LeaseLost
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import CHECKPOINT_PREFIX
from coatnet.runtime.whole_files import sync_folder

_POLL_SECONDS = 0.02
_SPACE_MARGIN = 1.05


class SaveFailed(RuntimeError):
    """One save came to nothing; the run goes on and the older checkpoint stays."""


@dataclass(frozen=True)
class Save:
    """What is saved, and where.

    Attributes:
        place: where the checkpoint will lie.
        number, epoch: which save of which job; they name the temporary directory.
        step, samples_seen, facts: what the manifest says.
    """

    place: Path
    number: int
    epoch: int
    step: int
    samples_seen: int
    facts: dict[str, Any]

    @property
    def temporary(self) -> Path:
        """The directory that all ranks write into."""
        return self.place.with_name(f".{self.place.name}.epoch{self.epoch}.save{self.number}.tmp")


def write_save(
    save: Save,
    snapshot: list[Fragment],
    *,
    ranks: Ranks,
    check_lease: Callable[[], None],
    timeout_seconds: float,
) -> None:
    """Do this rank's part of a save; on rank 0 the checkpoint is committed then.

    Args:
        save: which.
        snapshot: this rank's fragments, in host memory.
        ranks: who writes.
        check_lease: raises if another job has taken the run over.
        timeout_seconds: how long rank 0 waits for the slowest rank.

    Raises:
        OSError, SaveFailed: it came to nothing; whatever was written is removed.
        LeaseLost: another job has taken the run over.
    """
    file = save.temporary / f"rank-{ranks.rank:05d}.safetensors"
    try:
        written = _write_own(save, snapshot, file=file, ranks=ranks)
    except (OSError, SaveFailed) as error:  # removed, which frees the space that was missing
        if ranks.is_main:
            shutil.rmtree(save.temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                file.unlink()
            _tell(save, ranks, fault=str(error))
        raise
    if not ranks.is_main:
        _tell(save, ranks, file=asdict(written))
        return
    try:
        others = [_await_rank(save, ranks, rank, timeout_seconds) for rank in range(1, ranks.world_size)]
        _commit(save, (written, *others), check_lease)
    finally:
        shutil.rmtree(save.temporary, ignore_errors=True)


def _write_own(save: Save, snapshot: list[Fragment], *, file: Path, ranks: Ranks) -> RankFile:
    if ranks.is_main:
        _clear_failed(save)
    for one in snapshot:
        if not torch.isfinite(one.data).all():
            raise SaveFailed(f"{one.kind} {one.name} is not finite at step {save.step}")
    with suppress(FileExistsError):  # `exist_ok` would look whether it is a folder, a thousand times
        save.temporary.mkdir()
    own_bytes = sum(one.data.nbytes for one in snapshot)
    _require_space(save.place.parent, own_bytes * ranks.world_size)
    written = write_rank_file(file, snapshot)
    sync_folder(save.temporary)
    return written


def _clear_failed(save: Save) -> None:
    """Remove what ranks wrote for a save that had failed by then: the next one needs the room."""
    for left in save.place.parent.glob(f".{CHECKPOINT_PREFIX}*.epoch{save.epoch}.save*.tmp"):
        number = int(left.name.rpartition(".save")[2].removesuffix(".tmp"))
        if number < save.number:  # a rank that is quick may have begun with a later one
            shutil.rmtree(left, ignore_errors=True)


def _require_space(directory: Path, all_bytes: int) -> None:
    """Fail before writing rather than in the middle; ranks are taken to write alike."""
    status = os.statvfs(directory)
    free, wanted = status.f_bavail * status.f_frsize, int(all_bytes * _SPACE_MARGIN)
    if free < wanted:
        raise SaveFailed(
            f"{directory}: {free / 2**20:,.1f} MiB free, a checkpoint needs {wanted / 2**20:,.1f}"
        )


def _commit(save: Save, files: tuple[RankFile, ...], check_lease: Callable[[], None]) -> None:
    manifest = Manifest(
        step=save.step,
        samples_seen=save.samples_seen,
        world_size=len(files),
        epoch=save.epoch,
        files=files,
        facts=save.facts,
    )
    write_json(save.temporary / MANIFEST, manifest_to_json(manifest))
    sync_folder(save.temporary)
    Checkpoint(save.temporary)  # every file that the manifest names is there, in its size
    check_lease()
    try:
        # Never over another: what is at this place can only be a successor's, if we were frozen just now.
        save.temporary.rename(save.place)
    except OSError:
        check_lease()
        raise
    sync_folder(save.place.parent)


def _await_rank(save: Save, ranks: Ranks, rank: int, timeout_seconds: float) -> RankFile:
    """Wait for a rank's word of its file: over NFS a note there could take a minute to be seen."""
    deadline = time.monotonic() + timeout_seconds
    absence = Absence(every_seconds=_POLL_SECONDS)
    while (word := ranks.heard(_key(save, rank))) is None:
        if not save.temporary.exists():
            raise LeaseLost(f"{save.temporary} was removed by a newer job")
        deadline += absence.seconds()  # a suspended job's ranks were all away
        if time.monotonic() > deadline:
            raise SaveFailed(f"rank {rank} did not write within {timeout_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    told = json.loads(word)
    if "fault" in told:
        raise SaveFailed(f"rank {rank}: {told['fault']}")
    return rank_file_from_json(told["file"])


def _tell(save: Save, ranks: Ranks, **word: Any) -> None:
    with suppress(RuntimeError):  # rank 0 is gone: all end
        ranks.tell(_key(save, ranks.rank), json.dumps(word, separators=(",", ":")))


def _key(save: Save, rank: int) -> str:
    return f"{save.temporary.name}/{rank}"
