"""One shard's work, run in any process: read, judge, write. Knows no plan and no other shard."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_pipeline.manifest import ShardEntry
from data_pipeline.passing import tried_again
from data_pipeline.sharding.inspection import Judged, judge
from data_pipeline.sharding.listing import WHOLE_FILE, Item
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.shard_writer import ShardWriter, sample_key

_MAX_PAYLOAD_BYTES = 1 << 28


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
    def images(self) -> int:
        """How many images it was made from."""
        return self.entry.samples + len(self.skipped)

    @property
    def skipped(self) -> list[Oddity]:
        """The images that were left out."""
        return [oddity for oddity in self.odd if oddity.action == "skip"]


def write_shard(
    path: Path, *, first: int, items: list[Item], options: ShardOptions, multi: bool
) -> ShardResult:
    """Write a shard; `first` is its first sample's number in the corpus.

    Raises:
        OSError: it could not be written; nothing of it is left.
        UserError: the policy for an image is "stop".
    """
    odd: list[Oddity] = []
    with ShardWriter(path, multi=multi) as shard:
        for number, item in enumerate(items, start=first):
            judged = _judge(item, shard.payload_room(item.size + 1), options)
            if judged.kinds:
                odd.append(Oddity(item.name, list(judged.kinds), judged.action, judged.detail))
            if judged.info is not None:
                shard.add(sample_key(number, item.name), judged, item.label)
        entry = shard.commit()
    return ShardResult(entry, odd)


def _judge(item: Item, room: memoryview | None, options: ShardOptions) -> Judged:
    try:
        payload = tried_again(partial(read_item, item, room))
        return judge(payload, name=item.name, options=options)
    except OSError as error:
        return Judged(b"", None, kinds=["unreadable"], detail=str(error.strerror), action="skip")


def read_item(item: Item, room: memoryview | None = None) -> bytes | memoryview:
    """Read a sample's payload, never more than an image may have.

    Args:
        room: memory of more than the listed size, to read into rather than to allocate.

    Raises:
        OSError: it cannot be read.
    """
    whole = item.offset == WHOLE_FILE
    descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
    try:
        if room is not None:
            count = os.preadv(descriptor, [room if whole else room[: item.size]], 0 if whole else item.offset)
            if count == item.size or not whole:
                return room[:count]
        if whole:
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
