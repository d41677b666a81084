"""How far a run directory has come, read from its files alone: no torch, no queue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from coatnet.runtime.run_directory import RunDirectory, parse_lines

_TAIL_BYTES = 1 << 16
_MESSAGE_CHARACTERS = 300
_RANK_PREFIX = re.compile(r"^(\[rank\d+\]:|error:)\s*")
_LAUNCHER_WORDS = ("slurmstepd", "srun:")


def newest_step(directory: Path) -> int:
    """Return the step of the newest committed checkpoint, -1 for none.

    A checkpoint `step-00000045` exists once its manifest does; whether its bytes are right, the ranks verify.
    """
    for path in RunDirectory(directory).find_checkpoints():
        if (path / "manifest.json").exists():
            return int(path.name.removeprefix("step-"))
    return -1


def last_lines(path: Path, *, count: int) -> list[str]:
    """Return the last lines of a file that may be large; empty if it is missing."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-count:]


def last_line(path: Path) -> str:
    """Return what a log says last; empty if it says nothing."""
    lines = (line.strip() for line in reversed(last_lines(path, count=50)))
    return next(filter(None, lines), "")


def last_records(path: Path, *, count: int) -> list[dict[str, Any]]:
    """Return the last JSON lines of a file, torn ones left out."""
    return list(parse_lines(last_lines(path, count=count)))


def last_words(logs: Path, label: str, *, rank: int) -> str:
    """Return the last line of a rank's log that is its own, which for Python is the error's message."""
    for line in reversed(last_lines(logs / f"{label}.rank-{rank}.log", count=50)):
        text = _RANK_PREFIX.sub("", line).strip()
        if text and not text.startswith(_LAUNCHER_WORDS):
            return text[:_MESSAGE_CHARACTERS]
    return ""
