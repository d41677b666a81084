"""Writes one shard with its index: hashed in passing, committed by rename. Knows no source and no plan."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.index import FORMATS, LABEL, SAMPLE, ShardIndex, file_hash, index_path, labels_path
from data_pipeline.manifest import ShardEntry, sync_folder, write_whole
from data_pipeline.sharding.direct_file import DirectFile
from data_pipeline.sharding.inspection import Judged
from data_pipeline.tar_format import BLOCK, END, member_header, padding

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]+")
_MAX_KEY_NAME = 64


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
        with closing(DirectFile(temporary)) as file:
            rows, labels, xxh3 = _write_records(file, samples)
            file.sync()
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
    return ShardEntry(path.name, len(rows), file.position, xxh3, file_hash(samples_file), labels_hash)


def _write_records(
    file: DirectFile, samples: Iterable[Sample]
) -> tuple[list[tuple[int, ...]], list[tuple[int, float]], str]:
    """Return the index's rows, the labels' rows and the file's hash."""
    rows: list[tuple[int, ...]] = []
    labels: list[tuple[int, float]] = []
    whole = xxhash.xxh3_128()
    for sample in samples:
        image, info = sample.image, sample.image.info
        assert info is not None, "skipped images are not written"
        payload, label, count = image.payload, sample.label, 1
        head = member_header(sample.key + b"." + image.suffix.encode(), len(payload))
        if sample.rows is not None:
            label, count = len(labels), len(sample.rows)
            labels += sample.rows.tolist()
        position, checksum = file.position, xxhash.xxh3_64()
        for part in (head, payload, padding(len(payload)) + _label_member(sample)):
            checksum.update(part)
            whole.update(part)
            file.append(part)
        rows.append(
            (
                position,
                checksum.intdigest(),
                file.position - position,
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
    file.append(END)
    whole.update(END)
    return rows, labels, whole.hexdigest()


def _label_member(sample: Sample) -> bytes:
    """Return the member that holds the label: `cls` for one, `json` for several with weights."""
    if sample.rows is None:
        suffix, content = b".cls", b"%d" % sample.label
    else:
        pairs = ",".join(f"[{label},{weight:.7g}]" for label, weight in sample.rows.tolist())
        suffix, content = b".json", f'{{"labels":[{pairs}]}}'.encode()
    return member_header(sample.key + suffix, len(content)) + content + padding(len(content))
