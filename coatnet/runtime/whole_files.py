"""Small files that exist wholly or not at all, over a crash of the process and of the machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it exists wholly or not at all, and survives a power cut.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refresh_view(folder: Path) -> None:
    """Change a folder, so that its content is read anew: over NFS it may else be that of a minute ago."""
    probe = folder / f".look.{os.getpid()}"
    with suppress(OSError):  # what cannot be written can be read
        probe.touch()
        probe.unlink()
