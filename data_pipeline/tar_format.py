"""The ustar records of a shard: made byte by byte for speed, read strictly. Knows no images and no labels."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from coatnet.runtime.regular_files import open_regular

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100
_CHUNK_BYTES = 1 << 20

# name 100, mode 8, uid 8, gid 8; size 12; time 12, checksum 8, type 1, link 100, magic 8, names 64, device 16
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" * 2
_TIME = b"00000000000\0"
_BEHIND_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_TIME) + sum(b" " * 8) + sum(_BEHIND_CHECKSUM)


class TarError(Exception):
    """A tar breaks off, makes no sense or lacks contents; the message says where."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Units: bytes; its header begins at `start`, its content at `data`, the next member at `end`.
    """

    name: str
    start: int
    data: int
    size: int
    end: int


def member_header(name: bytes, size: int) -> bytes:
    """Return the header of a read-only file of time 0, owned by 0: equal content gives equal shards."""
    assert 0 < len(name) <= MAX_NAME_BYTES and size < 8**11
    field = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(field))
    return b"".join(
        (name, bytes(MAX_NAME_BYTES - len(name)), _BEFORE_SIZE, field, _TIME, checksum, _BEHIND_CHECKSUM)
    )


def padding(size: int) -> bytes:
    """Return the zeros that fill a content of `size` bytes up to whole blocks."""
    return bytes(-size % BLOCK)


def member_name(header: bytes) -> str:
    """Read the name out of a header."""
    fields = header[345:500] if header[257:262] == b"ustar" else b"", header[:MAX_NAME_BYTES]
    # What stands behind the first zero is no part of a name: a flipped bit may have left something.
    names = [field.partition(b"\0")[0].decode("utf-8", "replace") for field in fields]
    return "/".join(name for name in names if name)


class _Window(io.RawIOBase):
    """A part of a file, as a file: a tar within a tar."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + position
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._file.seek(self._offset + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


def walk_members(path: Path, *, offset: int = 0, size: int | None = None) -> Iterator[Member]:
    """Yield a tar's regular files in order, as any writer made them (ustar, GNU and pax long names).

    Args:
        offset, size: where the tar lies in the file, for a tar within a tar; members' places count from the
            beginning of the file.

    Raises:
        TarError: a header is damaged, or the tar ends early. A reader that stops there loses the rest
            without a word; this one names the byte. Or it holds a link or holes in place of contents.
        OSError: it cannot be read, or is a folder, pipe or device.
    """
    with open_regular(path) as whole:
        file = _Window(whole, offset, os.fstat(whole.fileno()).st_size - offset if size is None else size)
        yield from _walk(file, path=path, offset=offset)


def _walk(file: _Window, *, path: Path, offset: int) -> Iterator[Member]:
    size, position = file.seek(0, io.SEEK_END), 0
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                data, end = entry.offset_data, tar.offset
                absent = "sparse" if entry.issparse() else "a link" if entry.issym() or entry.islnk() else ""
                if absent:
                    raise TarError(
                        f"{path}: {entry.name!r} is {absent}: its content would be left out; "
                        "`tar --dereference --hard-dereference` without `--sparse` holds contents"
                    )
                if data + entry.size > size and entry.isreg():
                    raise TarError(f"{path}: breaks off within {entry.name!r} at byte {offset + size}")
                if entry.isreg():
                    yield Member(entry.name, offset + position, offset + data, entry.size, offset + end)
                tar.members = []  # type: ignore[attr-defined]  # else it keeps a million of them
                position = end
    except (tarfile.TarError, EOFError, OSError) as error:
        hint = "" if position else " (is it compressed?)"
        raise TarError(f"{path}: no readable tar behind byte {offset + position}: {error}{hint}") from None
    if size - position < len(END):
        raise TarError(f"{path}: breaks off at byte {offset + size}, without an end marker")
    # The walk stops without a word at a damaged header; behind a true end there are only zeros.
    file.seek(position)
    while chunk := file.read(_CHUNK_BYTES):
        if chunk.count(0) != len(chunk):
            raise TarError(f"{path}: the header at byte {offset + position} is damaged")
