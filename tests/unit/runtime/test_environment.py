"""A run says what it ran on: versions, machine, and the commit of its code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coatnet.runtime import environment

ROOT = Path(__file__).parents[3]


def test_versions_and_what_the_run_adds_are_named() -> None:
    found = environment.describe_environment(device="cpu", world_size=2)
    assert found["device"] == "cpu" and found["world_size"] == 2
    assert {"torch", "numpy", "python", "host", "commit"} <= set(found)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_commit_is_the_checkouts_and_says_when_files_differ() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    assert environment.code_commit() in (head, f"{head}+changes")


def test_outside_of_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "coatnet" / "runtime" / "environment.py"))
    assert environment.code_commit() == "unknown"
