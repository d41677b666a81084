"""A corpus of shards: samples by number, each verified when it is read. Knows no order and no decoding."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from coatnet.config import UserError
from data_pipeline.index import LABEL, SAMPLE, DamagedIndex, ShardIndex, parse_array
from data_pipeline.manifest import MANIFEST, Manifest, parse_manifest
from data_pipeline.record import BadSampleError, LostSampleError, Record
from data_pipeline.shard_files import IDLE_TURNS, LocalFiles, OpenShards, ShardFiles
from data_pipeline.tar_format import BLOCK, member_name

_KEPT_INDEXES = 1024  # 48 bytes a sample: 50 MB for shards of 1,000, and 5 GB for shards of 100,000


class Corpus:
    """Sharded samples.

    Attributes:
        manifest: what the corpus consists of.
        classes: names, by label.
        label_kind: "single" or "multi".
        counts, samples: of each shard, and in all.
        digest: names the content; part of a run's state.
        remote: shards are fetched over a network.
        load_index: reads a shard's index and verifies it.
        index: does the same, and keeps those that are in use.
    """

    def __init__(self, manifest: Manifest, files: ShardFiles) -> None:
        self.manifest = manifest
        self.classes = manifest.classes
        self.label_kind = manifest.label_kind
        self.digest = manifest.digest()
        self._files = files
        self._shards = OpenShards(files)
        self.remote = files.remote
        self.counts = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        self.samples = manifest.samples
        # No methods: to keep what one returns would make a cycle, and a training collects none for long.
        self.load_index = partial(_load_index, manifest, self._shards)
        self.index = _Indexes(self.load_index)

    @classmethod
    def open(cls, folder: Path | str) -> Corpus:
        """Open a folder of shards.

        Raises:
            UserError: it holds no manifest, or a broken one.
        """
        path = Path(folder) / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            if not os.path.isdir(folder):
                raise UserError(f"{folder}: no such folder of shards") from None
            place = shlex.quote(str(folder))
            raise UserError(
                f"{path}: {error.strerror}; `coatnet shard SOURCE {place}` makes it, and for tars of others "
                f"`coatnet shard {place} --in-place`"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        return cls(parse_manifest(content, origin=str(path)), LocalFiles(Path(folder)))

    def read(self, shard: int, index: int) -> Record:
        """Return a sample after verifying its checksum.

        A remote shard whose copy was damaged on this machine is fetched again.

        Raises:
            BadSampleError: a bit of its record in the tar, headers included, is not what was written.
        """
        try:
            return self._read(shard, index)
        except LostSampleError:
            raise
        except BadSampleError:
            if not self._shards.renew([*self.manifest.shards[shard].files]):
                raise
        return self._read(shard, index)

    def _read(self, shard: int, index: int) -> Record:
        entry = self.manifest.shards[shard]
        loaded = self.index(shard)
        row = loaded.samples[index].item()
        offset, checksum, size, image_at, image_bytes, width, height, label, labels, _, turn, *_ = row
        record = self._shards.read(entry.name, offset, size, expected_bytes=entry.bytes)
        if len(record) != size:
            raise BadSampleError(f"{entry.name}: ends within the sample at byte {offset}")
        if xxhash.xxh3_64_intdigest(record) != checksum:
            raise BadSampleError(f"{entry.name}: the sample at byte {offset} fails its checksum")
        rows = None
        if loaded.labels is not None:
            rows, label = loaded.labels[label : label + labels], 0
        payload = memoryview(record)[image_at : image_at + image_bytes]
        return Record(payload, width, height, turn, label, rows)

    def class_counts(self, *, share: int = 0, shares: int = 1) -> NDArray[np.int64]:
        """Return how many labels there are of each class, by the indexes of shards share, share + shares, ….

        Raises:
            BadSampleError: one of them is gone or does not match the manifest.
        """
        counts = np.zeros(len(self.classes), dtype=np.int64)
        for shard in range(share, len(self.counts), shares):
            counts += np.bincount(self.load_index(shard).all_labels, minlength=len(counts))
        return counts

    def name(self, shard: int, index: int) -> str:
        """Name a sample: shard, number and, if it can be read, its key."""
        entry = self.manifest.shards[shard]
        try:
            sample = self.index(shard).samples[index]
            header_at = int(sample["offset"]) + int(sample["image_at"]) - BLOCK
            header = self._shards.read(entry.name, header_at, BLOCK, expected_bytes=entry.bytes)
            return f"{entry.name}[{index}] {member_name(header)}"
        except BadSampleError:
            return f"{entry.name}[{index}]"

    @property
    def fetching(self) -> str:
        """Name a file that is being fetched, and why it does not come; empty where none is."""
        return self._files.fetching

    def prepare(self, shards: list[int]) -> None:
        """Announce shards that will be read soon, the most urgent first."""
        self._files.prepare([file for shard in shards for file in self.manifest.shards[shard].files])


class _Indexes:
    """The indexes that were used most recently, without those that nobody has asked for long.

    A rank is at a few shards of each of its lanes and does not come back: what it has left behind would take
    gigabytes where shards are large. Safe to share by threads.
    """

    def __init__(self, load: Callable[[int], ShardIndex]) -> None:
        self._load, self._lock, self._turn = load, threading.Lock(), 0
        self._kept: dict[int, ShardIndex] = {}
        self._last_turn: dict[int, int] = {}

    def __call__(self, shard: int) -> ShardIndex:
        self._turn += 1  # without a lock, for each sample; a turn that another thread overwrites is no matter
        found = self._kept.get(shard)
        if found is not None:
            self._last_turn[shard] = self._turn
            return found
        loaded = self._load(shard)
        with self._lock:
            self._kept[shard], self._last_turn[shard] = loaded, self._turn
            self._let_go()
        return loaded

    def _let_go(self) -> None:
        """Drop the longest unused, beyond the limit or idle."""
        for shard, turn in sorted(self._last_turn.items(), key=itemgetter(1)):
            is_idle = self._turn - turn > IDLE_TURNS * len(self._last_turn)
            if not is_idle and len(self._last_turn) <= _KEPT_INDEXES:
                break
            del self._last_turn[shard]
            self._kept.pop(shard, None)


def _load_index(manifest: Manifest, shards: OpenShards, shard: int) -> ShardIndex:
    """Read a shard's index.

    Raises:
        BadSampleError: it is gone or does not match the manifest.
    """
    entry = manifest.shards[shard]
    *files, _ = entry.files.items()
    try:
        arrays = [
            shards.use(name, partial(_read_array, dtype=dtype, xxh3=xxh3))
            for (name, xxh3), dtype in zip(files, (SAMPLE, LABEL), strict=False)
        ]
    except DamagedIndex as error:
        raise BadSampleError(str(error)) from None
    index = ShardIndex(*arrays)
    if len(index.samples) != entry.samples:
        raise BadSampleError(
            f"{entry.name}: its index holds {len(index.samples)} samples, the manifest says {entry.samples}"
        )
    named, classes = index.all_labels, len(manifest.classes)
    if len(named) and not 0 <= named.min() <= named.max() < classes:
        raise BadSampleError(f"{entry.name}: its index names a class beyond the manifest's {classes}")
    return index


def _read_array(path: Path, *, dtype: np.dtype, xxh3: str) -> NDArray[np.void]:
    return parse_array(path.read_bytes(), dtype=dtype, origin=str(path), xxh3=xxh3)
