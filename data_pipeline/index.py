"""The index beside a shard: where each sample lies, its size in pixels, its label, its checksum.

One `.npy` file of a fixed record type per shard (and one of labels, for several per sample), verified by the
manifest's hash before it is believed. Knows no tar and no image format.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

# offset, bytes: the sample's whole record in the tar, headers and padding included; `checksum` (xxh3, 64 bit)
# covers all of it. image_at: from the record's beginning. label: the class, or the first of its rows in the
# labels' file.
SAMPLE = np.dtype(
    [
        ("offset", "<u8"),
        ("checksum", "<u8"),
        ("bytes", "<u4"),
        ("image_at", "<u4"),
        ("image_bytes", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("label", "<i4"),
        ("labels", "<u2"),
        ("flags", "<u2"),
        ("orientation", "u1"),
        ("format", "u1"),
        ("reserved", "<u2"),
    ]
)
LABEL = np.dtype([("label", "<i4"), ("weight", "<f4")])
# By number in the column `format`; what is none of these is not decoded.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# The header as numpy's save writes it. numpy's load parses it as Python, which in several threads can end in
# a SystemError of CPython 3.11, when the garbage collector runs in between.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\0[\0-\xff]{2}"
    rb"\{'descr': (?P<type>\[[^\n]+?\]), 'fortran_order': False, 'shape': \((?P<length>\d{1,18}),\), \} *\n"
)
_CHUNK_BYTES = 4 << 20


class Flag(IntFlag):
    """What is odd about an image that is kept."""

    PROGRESSIVE = 1
    GRAY = 2
    FOUR_CHANNELS = 4
    ANIMATED = 8
    DEEP = 16
    DAMAGED = 32
    RENAMED = 64
    TILED = 128
    CONVERTED = 256


class DamagedIndex(Exception):
    """An index does not match its manifest or its shard."""


@dataclass(frozen=True)
class ShardIndex:
    """A shard's samples (of type SAMPLE) and, for several labels per sample, their labels (of type LABEL)."""

    samples: NDArray[np.void]
    labels: NDArray[np.void] | None = None

    @property
    def all_labels(self) -> NDArray[np.int32]:
        """The class of each sample, or of each row of several labels."""
        return (self.samples if self.labels is None else self.labels)["label"]

    def to_bytes(self) -> tuple[bytes, bytes | None]:
        """Return the contents of the two files."""
        return _npy(self.samples), None if self.labels is None else _npy(self.labels)


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_suffix(".index.npy")


def labels_path(shard: Path) -> Path:
    """Return the path of a shard's labels, where samples have several."""
    return shard.with_suffix(".labels.npy")


def parse_array(content: bytes, *, dtype: np.dtype, origin: str, xxh3: str) -> NDArray[np.void]:
    """Read one index file.

    Raises:
        DamagedIndex: the hash differs, or the file is not an array of that type.
    """
    if file_hash(content) != xxh3:
        raise DamagedIndex(f"{origin}: differs from what the manifest says; it was damaged or replaced")
    header = _HEADER.match(content)
    if header is None or header["type"] != repr(dtype.descr).encode():
        raise DamagedIndex(f"{origin}: is not an index of this version")
    try:
        return np.frombuffer(content, dtype, count=int(header["length"]), offset=header.end())
    except ValueError:
        raise DamagedIndex(
            f"{origin}: holds fewer than the {int(header['length'])} records it names"
        ) from None


def file_hash(content: bytes) -> str:
    """Return the hash that manifests give for whole files: xxh3 of 128 bits, in hex."""
    return xxhash.xxh3_128_hexdigest(content)


def size_and_hash(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its hash as `file_hash` gives it.

    Raises:
        OSError: it cannot be read.
    """
    hasher, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            size += len(chunk)
    return size, hasher.hexdigest()


def _npy(array: NDArray[np.void]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
