"""A start waits once for a holder on another host that is silent, in whichever of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coatnet.runtime import lease as module
from coatnet.runtime.lease import Lease

# Takes the lease where it needs no wait, as a rank does that a start has made.
RANK = """
import sys
from pathlib import Path
from coatnet.runtime import lease
lease.time.sleep = None
lease.Lease.acquire(Path(sys.argv[1]))
"""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the waits to come, each of which lets its time pass at once."""
    waited: list[float] = []
    clock = time.monotonic
    monkeypatch.setenv(module._SILENT_VARIABLE, "")
    monkeypatch.setattr(module.time, "monotonic", lambda: clock() + sum(waited))
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


def test_the_ranks_of_a_start_that_found_the_holder_silent_do_not_wait_for_it_again(
    far: Path, tmp_path: Path, waits: list[float]
) -> None:
    assert Lease.require_free(tmp_path) == 7
    assert sum(waits) >= module._SILENCE_SECONDS
    subprocess.run([sys.executable, "-c", RANK, str(tmp_path)], check=True)
    assert module.newest_epoch(tmp_path) == 8


@pytest.mark.parametrize("changes", [{}, {"pid": 2}])
def test_a_holder_that_beats_again_or_another_one_is_waited_for_anew(
    far: Path,
    write_state: Callable[..., None],
    tmp_path: Path,
    waits: list[float],
    changes: dict[str, object],
) -> None:
    Lease.require_free(tmp_path)
    waits.clear()
    Lease.require_free(tmp_path)
    assert not waits
    write_state(far, 1 if changes else 2, **changes)
    Lease.require_free(tmp_path)
    assert sum(waits) >= module._SILENCE_SECONDS


def test_a_holder_whose_record_came_during_the_wait_was_not_silent_for_long_enough_to_be_noted(
    far: Path, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = module._read
    monkeypatch.setattr(module, "_read", lambda path: read(path) if waits[1:] else None)
    Lease.require_free(tmp_path)
    assert not os.environ[module._SILENT_VARIABLE]
