"""Real gloo ranks, forked from one process that has torch and DeepSpeed loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

ROOT = Path(__file__).parents[2]
OnRanks = Callable[..., list[Any]]


class RankServer:
    """rank_server.py, started when it is first asked, and anew after one that had no answer in time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except BaseException:  # the next question would be told this one's answer
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._process = None
            raise

    def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(timeout=120)

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rank_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            start_new_session=True,  # with its ranks
        )


@pytest.fixture(scope="session")
def rank_server() -> Iterator[RankServer]:
    server = RankServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ask_ranks(rank_server: RankServer) -> Callable[..., list[dict[str, Any]]]:
    """Run a function of scenarios.py on `world_size` ranks and return each rank's result or error."""

    def ask(name: str, *, world_size: int, **arguments: Any) -> list[dict[str, Any]]:
        return rank_server.ask({"name": name, "world_size": world_size, "arguments": arguments})

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
def small_disk(tmp_path: Path, mounted: Callable[..., AbstractContextManager[Path]]) -> Iterator[Path]:
    """A file system of its own of 4 MiB."""
    with mounted(tmp_path / "disk", "size=4m") as disk:
        yield disk
