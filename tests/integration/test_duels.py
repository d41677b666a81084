"""Two jobs on one run directory: exactly one owns it, and one that comes back commits nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_of_two_jobs_on_one_run_exactly_one_writes_whether_they_start_at_once_or_one_comes_back() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks/duels.py"),
        "--duels",
        "12",
        "--seed",
        "3",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result.pop("slowest_refusal_seconds") < 5
    assert result.pop("slowest_refused_command_seconds") == 0, "none was started"
    assert result == {
        "duels": 12,
        "two_owners": 0,
        "no_owner": 0,
        "double_committers": 0,
        "broken_checkpoints": 0,
    }
