"""One shard's work, run in any process: read, judge, write. Knows no plan and no other shard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.manifest import ShardEntry
from data_pipeline.sharding.inspection import Judged, judge
from data_pipeline.sharding.listing import WHOLE_FILE, Item
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.shard_writer import Sample, sample_key, write_shard

_MAX_PAYLOAD_BYTES = 1 << 28


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written; `first` is its first sample's number in the corpus."""

    path: str
    first: int
    items: list[Item]
    options: ShardOptions
    multi: bool


@dataclass(frozen=True)
class Oddity:
    """An image that is not just a plain one, as the report names it."""

    name: str
    kinds: list[str]
    action: str
    detail: str = ""


@dataclass(frozen=True)
class ShardResult:
    """A written shard and what was odd in it."""

    entry: ShardEntry
    odd: list[Oddity] = field(default_factory=list)

    @property
    def skipped(self) -> list[Oddity]:
        """The images that were left out."""
        return [oddity for oddity in self.odd if oddity.action == "skip"]


def run_job(job: ShardJob) -> ShardResult:
    """Write a shard.

    Raises:
        OSError: it could not be written; nothing of it is left.
        StopSharding: an image whose policy is "stop".
    """
    odd: list[Oddity] = []
    entry = write_shard(Path(job.path), _samples(job, odd), multi=job.multi)
    return ShardResult(entry, odd)


def _samples(job: ShardJob, odd: list[Oddity]) -> Iterator[Sample]:
    for number, item in enumerate(job.items, start=job.first):
        try:
            judged = judge(read_item(item), name=item.name, options=job.options)
        except OSError as error:
            judged = Judged(b"", None, kinds=["unreadable"], detail=str(error.strerror), action="skip")
        if judged.kinds:
            odd.append(Oddity(item.name, list(judged.kinds), judged.action, judged.detail))
        if judged.info is not None:
            yield Sample(sample_key(number, item.name), judged, item.label, item.rows)


def read_item(item: Item) -> bytes:
    """Read a sample's payload, never more than an image may have.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if item.offset == WHOLE_FILE:
            return _read_all(descriptor, item.size)
        return os.pread(descriptor, min(item.size, _MAX_PAYLOAD_BYTES), item.offset)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, expected: int) -> bytes:
    content = os.read(descriptor, min(expected, _MAX_PAYLOAD_BYTES) + 1)
    if len(content) == expected:
        return content
    parts = [content]  # the file grew since it was listed, or the read was cut short
    while parts[-1] and sum(map(len, parts)) <= _MAX_PAYLOAD_BYTES:
        parts.append(os.read(descriptor, 1 << 20))
    return b"".join(parts)
