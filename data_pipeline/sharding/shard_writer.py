"""Writes one shard with its index: hashed in passing, committed by rename. Knows no source and no plan."""

from __future__ import annotations

import os
import re
from pathlib import Path

import xxhash

from coatnet.runtime.whole_files import sync_folder
from data_pipeline.manifest import ShardEntry
from data_pipeline.sharding.direct_file import DirectFile
from data_pipeline.sharding.index_rows import IndexRows
from data_pipeline.sharding.inspection import Judged
from data_pipeline.sharding.listing import Label
from data_pipeline.tar_format import BLOCK, END, member_header, padding

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]+")
_MAX_KEY_NAME = 64


def sample_key(number: int, name: str) -> bytes:
    """Make a key that sorts by `number` and still shows where the sample came from, made harmless."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0].encode("utf-8", "replace")
    return b"%09d-%s" % (number, _UNSAFE.sub(b"_", stem)[:_MAX_KEY_NAME])


class ShardWriter:
    """A shard in the making; a context that leaves a whole shard with its index, or nothing.

    A record is composed where the disk takes it from: the payload is read there, and never copied.
    """

    def __init__(self, path: Path, *, multi: bool) -> None:
        """Begin the shard under a temporary name.

        Raises:
            OSError: it cannot be written there.
        """
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = DirectFile(self._temporary)
        self._hash = xxhash.xxh3_128()
        self._index = IndexRows(multi=multi)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def payload_room(self, size: int) -> memoryview | None:
        """Return where the next record's payload will lie, if it is small enough to be read there.

        Raises:
            OSError: the disk is full or fails.
        """
        room = self._file.room(BLOCK + size)
        return None if room is None else room[BLOCK:]

    def add(self, key: bytes, image: Judged, label: Label) -> None:
        """Write a sample; a payload that is a view lies at the beginning of the newest `payload_room`.

        Args:
            key: names the sample in the tar.
            label: as of `Item`.

        Raises:
            OSError: the disk is full or fails.
        """
        payload = image.payload
        head = member_header(key + b"." + image.suffix.encode(), len(payload))
        tail = padding(len(payload)) + _label_member(key, label)
        position, size = self._file.position, BLOCK + len(payload) + len(tail)
        checksum = self._write(head, payload, tail)
        self._index.add(image, label, offset=position, checksum=checksum, size=size, image_at=BLOCK)

    def commit(self) -> ShardEntry:
        """Write the index, then let both appear under their names.

        Raises:
            OSError: the disk is full or fails.
        """
        self._hash.update(END)
        self._file.append(END)
        self._file.sync()
        hashes = self._index.write(self._path)
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)
        size, whole = self._file.position, self._hash.hexdigest()
        return ShardEntry(self._path.name, len(self._index), size, whole, *hashes)

    def _write(self, head: bytes, payload: bytes | memoryview, tail: bytes) -> int:
        """Write a record and return its checksum."""
        end = BLOCK + len(payload)
        size = end + len(tail)
        in_place = isinstance(payload, memoryview)
        if in_place and not self._file.fits(size):  # making room would move it
            payload, in_place = bytes(payload), False
        record = self._file.room(size)
        if record is None:
            checksum = xxhash.xxh3_64()
            for part in (head, payload, tail):
                checksum.update(part)
                self._hash.update(part)
                self._file.append(part)
            return checksum.intdigest()
        record[:BLOCK] = head
        if not in_place:
            record[BLOCK:end] = payload
        record[end:] = tail
        self._hash.update(record)
        self._file.take(size)
        return xxhash.xxh3_64_intdigest(record)


def _label_member(key: bytes, label: Label) -> bytes:
    """Return the member that holds the label: `cls` for one, `json` for several with weights."""
    if isinstance(label, int):
        suffix, content = b".cls", b"%d" % label
    else:
        pairs = ",".join(f"[{number},{weight:.7g}]" for number, weight in label)
        suffix, content = b".json", f'{{"labels":[{pairs}]}}'.encode()
    return member_header(key + suffix, len(content)) + content + padding(len(content))
