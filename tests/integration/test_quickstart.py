"""The whole way by one command: shards, two ranks, SIGTERM, resume, fine-tuning, export; then again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="scikit-learn (extra `quickstart`) holds the digits"
)


def quickstart(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coatnet.cli", "quickstart", "--directory", str(directory)]
    environment = {**os.environ, "COLUMNS": "120"}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_the_quickstart_resumes_reaches_its_accuracy_and_is_quick_the_second_time(tmp_path: Path) -> None:
    directory = tmp_path / "quickstart"
    first = quickstart(directory)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-4000:]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["resumed"] is True
    assert summary["finetuned_top1"] >= 0.97
    assert 0.2 < summary["scratch_top1"] <= 1.0
    assert "images/s" in first.stdout and "from scratch" in first.stdout
    for path in ("pretrain/report.html", "pretrain/tensorboard", "export/model.safetensors"):
        assert (directory / path).exists(), path

    before = {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*")) if path.is_file()}
    began = time.monotonic()
    second = quickstart(directory)
    assert second.returncode == 0 and "from scratch" in second.stdout
    assert time.monotonic() - began < 10
    assert before == {
        path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*")) if path.is_file()
    }
