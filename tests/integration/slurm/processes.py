"""What /proc tells of a process, which may be gone by then."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def environment_of(pid: int) -> dict[str, str]:
    pairs = read(f"/proc/{pid}/environ").decode(errors="replace").split("\0")
    return {name: value for name, equals, value in (pair.partition("=") for pair in pairs) if equals}


def is_python(pid: int) -> bool:
    return os.path.basename(read(f"/proc/{pid}/cmdline").split(b"\0")[0]).startswith(b"python")


def open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except OSError:
        return set()
