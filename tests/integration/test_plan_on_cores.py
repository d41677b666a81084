"""Whole runs beside their plan, by the command that made the tables of benchmarks/plan.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_MODELS = 4


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_within_a_tenth_and_time_within_a_fifth_for_four_sizes_on_two_cores() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two ranks need two cores")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "plan.py")],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    head, _, *rows = [
        line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")
    ]
    assert len(rows) == _MODELS
    memory, seconds = (number for number, name in enumerate(head) if name == "error")
    for row in rows:
        assert abs(int(row[memory].strip("%"))) <= 10, row
        assert abs(int(row[seconds].strip("%"))) <= 20, row
