"""What is done of a sharding, so that a killed one goes on. Knows no source.

A folder `.sharding` in the destination holds the plan's name, a lock, and one file per finished shard, which
is written after the shard itself is safe. It goes when the manifest has been written.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from coatnet.config import UserError
from coatnet.runtime.whole_files import write_whole
from data_pipeline.manifest import ShardEntry
from data_pipeline.sharding.job import Oddity, ShardResult
from data_pipeline.sharding.plan import IN_PLACE

FOLDER = ".sharding"


@contextmanager
def journal_in(destination: Path, *, plan: str) -> Iterator[Journal]:
    """Take the destination for one sharding, and remove what a killed one left half-written.

    Raises:
        UserError: another process is at work there, or it holds the beginning of another sharding, or tars of
            which nothing is known.
    """
    folder = destination / FOLDER
    unknown = next(destination.glob("*.tar"), None) if not folder.exists() else None
    if unknown is not None and not plan.startswith(IN_PLACE):
        raise UserError(
            f"{destination}: holds {unknown.name} and no manifest; it might be written over, or taken for "
            "one of the shards: give another destination"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{destination}: another process is sharding into it") from None
        plan_file = folder / "plan"
        if plan_file.exists() and plan_file.read_text() != plan:
            remedy = (
                f"remove {folder}" if plan.startswith(IN_PLACE) else "delete it, or give another destination"
            )
            raise UserError(
                f"{destination}: holds the beginning of a sharding of another source or with other options; "
                f"{remedy}"
            )
        write_whole(plan_file, plan.encode())
        for place in (destination, folder):
            for orphan in place.glob(".*.[0-9]*.tmp"):
                orphan.unlink(missing_ok=True)
        yield Journal(folder)
        remove_journal(destination)


def remove_journal(destination: Path) -> None:
    """Remove what is noted of a sharding that has its manifest, which says it all."""
    shutil.rmtree(destination / FOLDER, ignore_errors=True)


class Journal:
    """The record of one sharding."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def finished(self) -> dict[str, ShardResult]:
        """Return the finished shards whose files are still there, by name."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            values = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
            entry = ShardEntry(**values["entry"])
            files = [self._folder.parent / name for name in entry.files]
            if all(file.exists() for file in files) and files[-1].stat().st_size == entry.bytes:
                found[entry.name] = ShardResult(entry, [Oddity(**odd) for odd in values["odd"]])
        return found

    def add(self, result: ShardResult) -> None:
        """Record a finished shard."""
        path = self._folder / f"{Path(result.entry.name).stem}.json"
        write_whole(path, json.dumps(asdict(result), ensure_ascii=False).encode("utf-8", "surrogateescape"))
