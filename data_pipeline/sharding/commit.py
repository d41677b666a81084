"""The end of a sharding: its budget, its report, its manifest; and what the file system's errors mean."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coatnet.config import UserError
from coatnet.runtime.whole_files import write_whole
from data_pipeline.manifest import MANIFEST, Manifest, parse_manifest
from data_pipeline.sharding.job import Oddity, ShardResult
from data_pipeline.sharding.listing import Listing
from data_pipeline.sharding.plan import IN_PLACE

REPORT = "report.jsonl"
_NAMED = 5


class SkipBudget:
    """Stops a sharding in which too many images have to be skipped."""

    def __init__(self, share: float, *, total: int) -> None:
        """Allow one of all images to be skipped, or a share of them, whichever is more."""
        self._share, self._total = share, total
        self._skipped: list[Oddity] = []

    def count(self, result: ShardResult) -> None:
        """Count a shard's.

        Raises:
            UserError: they are too many by now.
        """
        self._skipped += result.skipped
        if len(self._skipped) <= (max(1.0, self._share * self._total) if self._share > 0 else 0.0):
            return
        named = [f"{one.name}: {', '.join(one.kinds)} {one.detail}".strip() for one in self._skipped[:_NAMED]]
        raise UserError(
            f"{len(self._skipped)} of {self._total} images cannot be used, more than the budget of "
            f"{self._share:g}: {'; '.join(named)}. Mend or remove them, or allow more with --bad-budget"
        )


def commit(
    destination: Path,
    listing: Listing,
    results: list[ShardResult],
    *,
    dropped: Sequence[Oddity],
    source: dict[str, Any],
) -> Manifest:
    """Write the report, then the manifest, which makes the corpus exist.

    Raises:
        UserError: not one image could be used.
    """
    shards = [result.entry for result in results]
    written = sum(shard.samples for shard in shards)
    if not written:
        raise UserError(f"{destination}: not one usable image in the source")
    manifest = Manifest(
        classes=listing.classes,
        shards=shards,
        label_kind=listing.label_kind,
        hierarchy=listing.hierarchy,
        source={**listing.source, **source},
        counts={
            "written": written,
            "skipped": sum(len(result.skipped) for result in results),
            "odd": sum(len(result.odd) for result in results),
            "duplicates": len(dropped),
        },
    )
    named = [(result.entry.name, oddity) for result in results for oddity in result.odd]
    lines = [{"shard": shard, **asdict(oddity)} for shard, oddity in named]
    lines += [{"shard": None, **asdict(oddity)} for oddity in dropped]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    write_whole(destination / REPORT, text.encode("utf-8", "surrogateescape"))
    write_whole(destination / MANIFEST, manifest.to_json().encode())
    return manifest


def finished_before(destination: Path, *, plan: str) -> Manifest | None:
    """Return the manifest of the same sharding, if it was finished before.

    Raises:
        UserError: the destination holds another corpus.
    """
    path = destination / MANIFEST
    if not path.exists():
        return None
    present = parse_manifest(path.read_bytes(), origin=str(path))
    if present.source.get("plan") != plan:
        remedy = "give another folder"
        if plan.startswith(IN_PLACE):  # the classes of packed shards are named in their manifest alone
            indexed = present.source.get("in_place")
            remedy = (
                f"remove {path} to index it anew" if indexed else "packed shards have their index already"
            )
        raise UserError(f"{destination}: holds a corpus of another source or other options; {remedy}")
    return present


@contextmanager
def disk_errors(destination: Path) -> Iterator[None]:
    """Turn the file system's errors into advice."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{destination}: the disk is full; finished shards are kept, and the same command goes on"
            ) from None
        raise UserError(f"{error.filename or destination}: {error.strerror or error}") from None
