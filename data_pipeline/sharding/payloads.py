"""Images that lie in a table, copied to one file beside the shards, from which workers can read them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from coatnet.config import UserError

_NAME = ".payloads"


class Payloads:
    """The file, made at the first image; a context that holds it for one process alone and removes it."""

    def __init__(self, destination: Path) -> None:
        self._path = destination / _NAME
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Payloads:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()

    def add(self, content: bytes) -> tuple[str, int]:
        """Append an image, and return the file's path and where the image begins.

        Raises:
            UserError: another process is sharding a table into the destination.
        """
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
        begin, self._size = self._size, self._size + self._file.write(content)
        return str(self._path), begin

    def flush(self) -> None:
        """Let others read what was added."""
        if self._file is not None:
            self._file.flush()

    def _opened(self) -> BinaryIO:
        """Empty the file, but never one that another process holds: its workers are reading it."""
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_removed = os.fstat(file.fileno()).st_nlink == 0
        except OSError:
            is_removed = True
        if is_removed:
            file.close()
            raise UserError(f"{self._path.parent}: another process is sharding into it")
        file.truncate(0)
        return file
