"""Writes one shard with its index: hashed in passing, committed by rename. Knows no source and no plan."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.index import FORMATS, LABEL, SAMPLE, ShardIndex, file_hash, index_path, labels_path
from data_pipeline.manifest import ShardEntry, sync_folder, write_whole
from data_pipeline.sharding.inspection import Judged
from data_pipeline.tar_format import BLOCK, END, member_header, padding

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]+")
_MAX_KEY_NAME = 64
# Faster than 4 MiB: what waits stays in the cache, and the heap below the size at which malloc hands it
# back to the system, to fault its pages in anew for every piece.
_WRITE_BYTES = 1 << 20
_MAX_PARTS = 512  # the kernel takes 1024 in one call


class Sample(NamedTuple):
    """What is written of a sample; `key` names it in the tar."""

    key: bytes
    image: Judged
    label: int
    rows: NDArray[np.void] | None = None


def sample_key(number: int, name: str) -> bytes:
    """Make a key that sorts by `number` and still shows where the sample came from, made harmless."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0].encode("utf-8", "replace")
    return b"%09d-%s" % (number, _UNSAFE.sub(b"_", stem)[:_MAX_KEY_NAME])


def write_shard(path: Path, samples: Iterable[Sample], *, multi: bool) -> ShardEntry:
    """Write a shard, then its index; both exist wholly or not at all.

    Raises:
        OSError: the disk is full or fails; what was begun is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            rows, labels, size, xxh3 = _write_records(file.fileno(), samples)
            os.fsync(file.fileno())
        index = ShardIndex(np.array(rows, dtype=SAMPLE), np.array(labels, dtype=LABEL) if multi else None)
        samples_file, labels_file = index.to_bytes()
        write_whole(index_path(path), samples_file)
        if labels_file is not None:
            write_whole(labels_path(path), labels_file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    labels_hash = None if labels_file is None else file_hash(labels_file)
    return ShardEntry(path.name, len(rows), size, xxh3, file_hash(samples_file), labels_hash)


def _write_records(
    descriptor: int, samples: Iterable[Sample]
) -> tuple[list[tuple[int, ...]], list[tuple[int, float]], int, str]:
    """Return the index's rows, the labels' rows, the file's size and its hash."""
    rows: list[tuple[int, ...]] = []
    labels: list[tuple[int, float]] = []
    output = _Output(descriptor)
    for sample in samples:
        image, info = sample.image, sample.image.info
        assert info is not None, "skipped images are not written"
        payload, label, count = image.payload, sample.label, 1
        head = member_header(sample.key + b"." + image.suffix.encode(), len(payload))
        if sample.rows is not None:
            label, count = len(labels), len(sample.rows)
            labels += sample.rows.tolist()
        position = output.position
        checksum = output.add(head, payload, padding(len(payload)) + _label_member(sample))
        rows.append(
            (
                position,
                checksum,
                output.position - position,
                BLOCK,
                len(payload),
                info.width,
                info.height,
                label,
                count,
                image.flags,
                info.orientation,
                FORMATS.index(info.format),
                0,
            )
        )
    output.add(END)
    output.flush()
    return rows, labels, output.position, output.hasher.hexdigest()


class _Output:
    """A file that is hashed in passing, and written in pieces of many records.

    The parts of a record are never joined: copying them would cost as much as hashing them.
    """

    def __init__(self, descriptor: int) -> None:
        self.position = 0
        self.hasher = xxhash.xxh3_128()
        self._descriptor = descriptor
        self._parts: list[bytes] = []
        self._waiting_bytes = 0

    def add(self, *parts: bytes) -> int:
        """Append a record and return its checksum."""
        checksum = xxhash.xxh3_64()
        for part in parts:
            checksum.update(part)
            self.hasher.update(part)
            self._waiting_bytes += len(part)
            self.position += len(part)
        self._parts += parts
        if self._waiting_bytes >= _WRITE_BYTES or len(self._parts) >= _MAX_PARTS:
            self.flush()
        return checksum.intdigest()

    def flush(self) -> None:
        """Write what waits."""
        written = os.writev(self._descriptor, self._parts)
        if written < self._waiting_bytes:  # a nearly full disk takes less than asked; the next write says why
            joined = b"".join(self._parts)
            while written < len(joined):
                written += os.write(self._descriptor, joined[written:])
        self._parts.clear()
        self._waiting_bytes = 0


def _label_member(sample: Sample) -> bytes:
    """Return the member that holds the label: `cls` for one, `json` for several with weights."""
    if sample.rows is None:
        suffix, content = b".cls", b"%d" % sample.label
    else:
        pairs = ",".join(f"[{label},{weight:.7g}]" for label, weight in sample.rows.tolist())
        suffix, content = b".json", f'{{"labels":[{pairs}]}}'.encode()
    return member_header(sample.key + suffix, len(content)) + content + padding(len(content))
