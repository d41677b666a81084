"""What somebody may not look into is told of, and not left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cluster.admission import check_start
from cluster.history import History
from cluster.logs import read_logs
from cluster.status import find_runs, status_or_trouble
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory


@pytest.fixture
def runs(tmp_path: Path, as_nobody: Callable[[], AbstractContextManager[None]]) -> Iterator[Path]:
    """The folder of two runs, seen from beside it by somebody whom permissions bind."""
    for name in ("first", "second"):
        for folder in ("logs", "mine"):
            (tmp_path / "runs" / name / folder).mkdir(parents=True)
        History(tmp_path / "runs" / name).begin(job_id="7", nodes=["n1"], step=-1)
    with as_nobody():
        yield Path("runs")
    (tmp_path / "runs").chmod(0o755)
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


def closed(path: Path) -> None:
    """Let nobody but root enter a folder."""
    user = os.geteuid()
    os.seteuid(os.getuid())
    path.chmod(0)
    os.seteuid(user)


def test_a_run_that_may_not_be_entered_is_in_the_table(runs: Path) -> None:
    assert find_runs([runs]) == [runs / "first", runs / "second"]
    for name in ("logs", "mine"):  # of a run that can be told of
        closed(runs / "first" / name)
    closed(runs / "second")
    assert find_runs([runs]) == [runs / "first", runs / "second"]
    found = status_or_trouble(runs / "second", queue=None)
    assert (found.state, found.detail) == ("unreadable", "runs/second/lives.jsonl: Permission denied")
    assert find_runs([runs / "second"]) == [runs / "second"]
    assert find_runs([Path(), Path("nowhere")]) == [runs / "first", runs / "second"]
    closed(runs)
    assert find_runs([Path()]) == find_runs([runs]) == [runs]


def test_logs_that_may_not_be_read_are_no_missing_ones(runs: Path) -> None:
    finished: Callable[[], bool] = lambda: True  # noqa: E731
    assert list(read_logs(runs / "nowhere", rank=None, tail=0, follow=False, finished=finished)) == []
    assert list(read_logs(runs / "first", rank=None, tail=0, follow=False, finished=finished)) == []
    closed(runs / "first" / "logs")
    with pytest.raises(PermissionError, match="runs/first/logs"):
        list(read_logs(runs / "first", rank=None, tail=0, follow=True, finished=finished))


@pytest.mark.parametrize("name", ["", "logs", "checkpoints"])
def test_no_job_is_queued_for_a_run_that_takes_no_files_from_its_user(runs: Path, name: str) -> None:
    """As a colleague's, of which a job may go as far as its first file."""
    run = RunDirectory(runs / "first")
    user = os.geteuid()
    os.seteuid(os.getuid())
    for path in (run.path, run.logs, run.checkpoints):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
    (run.path / name).chmod(0o555)
    os.seteuid(user)
    with pytest.raises(UserError, match=f"^{run.path / name}: takes no files from you; choose another"):
        check_start(None, run=run, world_size=1)
    check_start(None, run=RunDirectory(runs / "first" / "new"), world_size=1)
