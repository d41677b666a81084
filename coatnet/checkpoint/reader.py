"""Reading a checkpoint: any slice of any tensor, whatever world size wrote it, never without its checksum."""

from __future__ import annotations

import errno
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor

from coatnet.checkpoint.format import (
    TORCH_DTYPES,
    CheckpointError,
    Piece,
    RankFile,
    manifest_from_json,
    read_json,
)
from coatnet.checkpoint.inspection import MANIFEST

_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_CHUNK_BYTES = 1 << 20  # what is hashed while it lies in the processor's cache
# Files held open at once. At the stage that wrote them a rank reads two or three files at a time, at another
# one those of many ranks in turn, again and again.
_MOST_HELD = 512


class Checkpoint:
    """A committed checkpoint. Opening reads the manifest and the file sizes; data is verified when touched.

    Args:
        directory: where it lies.
        share, shares: look at the sizes of the rank files share, share + shares, … alone: where each of a
            thousand ranks asks after a thousand files, the file system answers a million times.

    Attributes:
        step, samples_seen: optimizer steps taken, and the run's clock.
        facts: what the application wrote beside the tensors.

    Raises:
        CheckpointError: no manifest, another format, a file missing or of the wrong size.
    """

    def __init__(self, directory: Path | str, *, share: int = 0, shares: int = 1) -> None:
        self.directory = Path(directory)
        origin = self.directory / MANIFEST
        self.manifest = manifest_from_json(read_json(origin), origin=origin)
        self.step, self.samples_seen = self.manifest.step, self.manifest.samples_seen
        self.facts = self.manifest.facts
        self._pieces: dict[tuple[str, str], list[tuple[RankFile, Piece]]] = defaultdict(list)
        for file in self.manifest.files:
            self._check_name(file)
            for piece in file.pieces:
                self._pieces[piece.kind, piece.name].append((file, piece))
        for file in self.manifest.files[share::shares]:
            self._check_size(file)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda pair: pair[1].start)
        self._verified: set[tuple[str, int]] = set()
        self._held: dict[str, BinaryIO] | None = None

    @property
    def bytes(self) -> int:
        """Size of all rank files."""
        return sum(file.bytes for file in self.manifest.files)

    def names(self, kind: str) -> list[str]:
        """Return the tensors of a kind, sorted."""
        return sorted(name for one, name in self._pieces if one == kind)

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Return a whole tensor's shape."""
        return self._of(kind, name)[0][1].shape

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return elements start … stop of the flattened tensor, assembled from whichever ranks wrote them.

        Raises:
            CheckpointError: unknown tensor, a hole, or bytes that do not match their checksum.
        """
        pieces = self._of(kind, name)
        total = math.prod(pieces[0][1].shape)
        stop = total if stop is None else stop
        assert 0 <= start <= stop <= total, (kind, name, start, stop, total)
        covered, spans = start, []
        for file, piece in pieces:
            low, high = max(covered, piece.start), min(stop, piece.start + piece.count)
            if low < high:
                if low > covered:
                    break
                spans.append((file, piece, low, high))
                covered = high
        if covered < stop:  # before memory is asked for
            raise CheckpointError(f"{self.directory}: {kind} {name} lacks elements from {covered} on")
        out = torch.empty(stop - start, dtype=TORCH_DTYPES[pieces[0][1].dtype])
        for file, piece, low, high in spans:
            data = self._piece_data(file, piece)
            out[low - start : high - start] = data[low - piece.start : high - piece.start]
        return out

    def tensor(self, kind: str, name: str) -> Tensor:
        """Return a whole tensor in its shape."""
        return self.read(kind, name).view(self.shape(kind, name))

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """Keep files that are read inside the block open, the last few.

        At ZeRO-3 each of many ranks reads four pieces of every tensor; each opening is work for one server.
        """
        self._held = {}
        try:
            yield
        finally:
            for opened in self._held.values():
                opened.close()
            self._held = None

    def verify(self, *, share: int = 0, shares: int = 1, kinds: Collection[str] | None = None) -> None:
        """Check every byte of the rank files share, share + shares, …; of some kinds of tensors, if given.

        Raises:
            CheckpointError: the first mismatch, with file and tensor.
        """
        for file in self.manifest.files[share::shares]:
            with self._opened(file) as opened:  # once, however many pieces it has
                self._verify_file(file, opened, kinds)

    def _verify_file(self, file: RankFile, opened: BinaryIO, kinds: Collection[str] | None) -> None:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        if _hash(opened, 0, file.header_bytes, buffer) != file.header_xxh3:
            raise CheckpointError(f"{self.directory / file.name}: the header does not match its checksum")
        ends = [file.header_bytes, *(piece.offset + piece.bytes for piece in file.pieces)]
        if ends != [*(piece.offset for piece in file.pieces), file.bytes]:
            raise CheckpointError(f"{self.directory / file.name}: pieces do not cover the file")
        for piece in file.pieces:
            if kinds is None or piece.kind in kinds:
                self._check(file, piece, _hash(opened, piece.offset, piece.bytes, buffer))

    def _of(self, kind: str, name: str) -> list[tuple[RankFile, Piece]]:
        found = self._pieces.get((kind, name))
        if not found:
            raise CheckpointError(f"{self.directory}: holds no {kind} {name}: it is of another model")
        return found

    def _check_name(self, file: RankFile) -> None:
        if not _FILE_NAME.fullmatch(file.name):
            raise CheckpointError(f"{self.directory}: the manifest names a file outside of it: {file.name!r}")

    def _check_size(self, file: RankFile) -> None:
        path = self.directory / file.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        if size != file.bytes:
            raise CheckpointError(f"{path}: {size} bytes, the manifest says {file.bytes}")

    @contextmanager
    def _opened(self, file: RankFile) -> Iterator[BinaryIO]:
        path = self.directory / file.name
        try:
            if self._held is not None:
                yield self._hold(path, self._held)
                return
            with path.open("rb") as opened:
                yield opened
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None

    @staticmethod
    def _hold(path: Path, held: dict[str, BinaryIO]) -> BinaryIO:
        """Return an open file, which stays open until so many others came."""
        if path.name not in held:
            if len(held) == _MOST_HELD:
                held.pop(next(iter(held))).close()
            held[path.name] = path.open("rb")
        return held[path.name]

    def _piece_data(self, file: RankFile, piece: Piece) -> Tensor:
        raw = np.empty(piece.bytes, dtype=np.uint8)
        with self._opened(file) as opened:
            read_into(opened, piece.offset, raw.data)
        if (file.name, piece.offset) not in self._verified:
            self._check(file, piece, xxhash.xxh3_64_hexdigest(raw.data))
        return torch.from_numpy(raw).view(TORCH_DTYPES[piece.dtype])

    def _check(self, file: RankFile, piece: Piece, xxh3: str) -> None:
        if xxh3 != piece.xxh3:
            raise CheckpointError(
                f"{self.directory / file.name}: {piece.kind} {piece.name} does not match its checksum"
            )
        self._verified.add((file.name, piece.offset))


def _hash(opened: BinaryIO, offset: int, size: int, buffer: memoryview) -> str:
    """Return the checksum of a range of a file, read through a buffer."""
    hasher = xxhash.xxh3_64()
    for begin in range(offset, offset + size, len(buffer)):
        part = buffer[: min(len(buffer), offset + size - begin)]
        read_into(opened, begin, part)
        hasher.update(part)
    return hasher.hexdigest()


def read_into(opened: BinaryIO, offset: int, memory: memoryview) -> None:
    """Fill memory by reads and not by a map: a bad block, or a file cut short, kills a process that maps it.

    Raises:
        OSError: the disk cannot read it, or the file ends before.
    """
    while len(memory):
        count = os.preadv(opened.fileno(), [memory], offset)
        if not count:
            raise OSError(errno.ENODATA, f"ends at byte {offset:,}")
        memory, offset = memory[count:], offset + count
