"""The lease of a holder on another host, of whom nothing but its file can be seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

RECORD = {"epoch": 7, "host": "far", "boot": "elsewhere", "pid": 1, "started": "1"}
WriteState = Callable[..., None]


@pytest.fixture(scope="session")
def write_state() -> WriteState:
    """Return what writes a holder's record, with what is changed in it, and the beat that it has come to."""

    def write(path: Path, state: int | str, **changes: object) -> None:
        path.write_text(f"{json.dumps({**RECORD, **changes})}\n{state:>12}\n")

    return write


@pytest.fixture
def far(tmp_path: Path, write_state: WriteState) -> Path:
    """The lease after the holder's first beat."""
    path = tmp_path / "lease" / "epoch-00000007"
    path.parent.mkdir()
    write_state(path, 1)
    return path
