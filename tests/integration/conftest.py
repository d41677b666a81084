"""Real gloo ranks, forked from one process that has torch and DeepSpeed loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

ROOT = Path(__file__).parents[2]
OnRanks = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def rank_server() -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("rank_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    yield server
    assert server.stdin is not None
    server.stdin.close()
    server.wait(timeout=120)


@pytest.fixture(scope="session")
def ask_ranks(rank_server: subprocess.Popen[str]) -> Callable[..., list[dict[str, Any]]]:
    """Run a function of scenarios.py on `world_size` ranks and return each rank's result or error."""

    def ask(name: str, *, world_size: int, **arguments: Any) -> list[dict[str, Any]]:
        assert rank_server.stdin is not None and rank_server.stdout is not None
        command = {"name": name, "world_size": world_size, "arguments": arguments}
        rank_server.stdin.write(json.dumps(command) + "\n")
        rank_server.stdin.flush()
        return json.loads(rank_server.stdout.readline())

    return ask


@pytest.fixture(scope="session")
def on_ranks(ask_ranks: Callable[..., list[dict[str, Any]]]) -> OnRanks:
    """Run a function of scenarios.py on `world_size` ranks and return its results, None of the dead."""

    def run(name: str, *, world_size: int, dies: bool = False, **arguments: Any) -> list[Any]:
        answers = ask_ranks(name, world_size=world_size, **arguments)
        for rank, answer in enumerate(answers):
            lived = "error" not in answer or (dies and answer["error"] == "died")
            assert lived, f"rank {rank}:\n{answer['error']}"
        return [answer.get("result") for answer in answers]

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
