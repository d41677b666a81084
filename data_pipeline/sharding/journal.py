"""What is done of a sharding, so that a killed one goes on. Knows no source.

A folder `.sharding` in the destination holds the plan's name, a lock, and one file per finished shard, which
is written after the shard itself is safe. It goes when the manifest has been written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from coatnet.config import UserError
from coatnet.runtime.whole_files import write_whole
from data_pipeline.index import index_path
from data_pipeline.manifest import ShardEntry
from data_pipeline.sharding.job import Oddity, ShardResult

FOLDER = ".sharding"


class Journal:
    """The record of one sharding; a context that holds the destination's lock."""

    def __init__(self, destination: Path, *, plan: str) -> None:
        self._folder = destination / FOLDER
        self._plan = plan
        self._lock = -1

    def __enter__(self) -> Journal:
        """Take the destination, and remove what a killed sharding left half-written.

        Raises:
            UserError: another process is at work there, or it holds the beginning of another sharding.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UserError(f"{self._folder.parent}: another process is sharding into it") from None
        plan_file = self._folder / "plan"
        if plan_file.exists() and plan_file.read_text() != self._plan:
            os.close(self._lock)
            raise UserError(
                f"{self._folder.parent}: holds the beginning of a sharding of another source or with other "
                "options; delete it, or give another destination"
            )
        write_whole(plan_file, self._plan.encode())
        for folder in (self._folder.parent, self._folder):
            for orphan in folder.glob(".*.tmp"):
                orphan.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def finished(self) -> dict[str, ShardResult]:
        """Return the finished shards whose files are still there, by name."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            values = json.loads(path.read_text())
            entry = ShardEntry(**values["entry"])
            shard = self._folder.parent / entry.name
            is_there = shard.exists() and index_path(shard).exists()
            if is_there and shard.stat().st_size == entry.bytes:
                found[entry.name] = ShardResult(entry, [Oddity(**odd) for odd in values["odd"]])
        return found

    def add(self, result: ShardResult) -> None:
        """Record a finished shard."""
        path = self._folder / f"{Path(result.entry.name).stem}.json"
        write_whole(path, json.dumps(asdict(result), ensure_ascii=False).encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        """Remove the record: the manifest says it all."""
        shutil.rmtree(self._folder, ignore_errors=True)
