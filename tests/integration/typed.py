"""`coatnet …` and its ranks as forks of a process that has torch loaded, which takes seconds elsewhere."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

from kills import Forked, forked_rank

import coatnet.runtime.launch
from coatnet.cli import main

_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def typed(words: list[str]) -> dict[str, Any]:
    """Run a command to its end and return its status and what it said."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:

        def be_the_command() -> int:
            for name in _PLACE:
                del os.environ[name]
            os.environ["COLUMNS"] = "120"
            os.dup2(said.fileno(), 1)
            os.dup2(complained.fileno(), 2)
            coatnet.runtime.launch._start_rank = forked_rank  # type: ignore[assignment]
            sys.argv = ["coatnet", *words]
            main()
            return 0

        status = Forked(be_the_command).wait()
        for file in (said, complained):
            file.seek(0)
        return {"returncode": status, "stdout": said.read().decode(), "stderr": complained.read().decode()}
