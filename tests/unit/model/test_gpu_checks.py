"""benchmarks/gpu_checks.sh without a GPU: what fails or takes too long costs no later part its turn."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Stands for Python: fails where told to, and says with which words it was called.
PYTHON = """#!/bin/sh
case "$*" in
*"$FAILING"*) echo "broken: $*"; exit 3 ;;
*) echo "ran: $*" ;;
esac
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return path


def check(folder: Path, python: Path, *parts: str, failing: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu_checks.sh"), str(folder), "h200", *parts],
        env={**os.environ, "PYTHON": str(python), "FAILING": failing},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_part_that_fails_leaves_the_others_their_turn_and_is_named(tmp_path: Path, python: Path) -> None:
    done = check(tmp_path / "out", python, failing="tests/gpu/test_runs.py tests/gpu/test_finetune.py")
    assert done.returncode == 1
    said = [tuple(line.split()[:2]) for line in done.stdout.splitlines()]
    assert said == [("runs", "failed"), *((part, "passed") for part in ("kernels", "peers", "fused", "plan"))]
    assert done.stdout == (tmp_path / "out/summary.txt").read_text()
    assert "broken: -m pytest" in (tmp_path / "out/runs.log").read_text()
    peers = (tmp_path / "out/peers.log").read_text()
    assert sorted(line[:7] for line in peers.splitlines()) == ["1: ran:", "2: ran:", "3: ran:"]
    assert "--only coatnet_4_224 b64 compiled NHWC coatnet_4_224 b64 eager NHWC" in peers


def test_a_part_of_several_processes_fails_with_any_of_them(tmp_path: Path, python: Path) -> None:
    done = check(tmp_path / "out", python, "peers", failing="--phases batches")
    assert done.returncode == 1 and done.stdout.startswith("peers    failed (3)")


def test_parts_that_are_named_are_the_only_ones_and_few_files_are_left(tmp_path: Path, python: Path) -> None:
    done = check(tmp_path / "out", python, "plan", failing="nothing fails")
    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "machine.txt", "plan.log", "summary.txt"
    ]  # fmt: skip
