"""What is looked at of many runs, of long ones and of large ones: no more than has to be."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from cluster import history, logs
from cluster.history import History
from cluster.logs import read_logs
from cluster.run_jobs import jobs_of_run
from cluster.slurm import QueuedJob
from cluster.status import find_runs, read_status
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lives import read_lives


def write_start(run: Path, life: int, text: str, *, number: int = 1) -> Path:
    path = run / "logs" / f"life-{life:03d}.try-{number}.rank-0.log"
    path.write_text(text)
    return path


def test_where_a_jobs_script_lies_is_asked_of_the_file_system_once_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, resolve = Counter[str](), os.path.realpath

    def counted(path: str | Path) -> str:
        asked[str(path)] += 1
        return resolve(path)

    monkeypatch.setattr(os.path, "realpath", counted)
    runs = [tmp_path / f"run-{number}" for number in range(5)]
    scripts = [f"{run}/submissions/0001/script.sh" for run in (*runs, tmp_path / "other")]
    queue = {str(at): QueuedJob(str(at), "RUNNING", script=script) for at, script in enumerate(scripts)}
    assert [jobs_of_run(run, queue) for run in runs] == [[queue[str(at)]] for at in range(5)]
    assert asked[str(tmp_path / "other")] == 1


def test_what_lies_in_a_runs_own_folders_is_no_run(run: Path) -> None:
    for folder in ("logs", "checkpoints", "mine"):
        (run / folder / "inner").mkdir(parents=True)
        History(run / folder / "inner").note("submitted", job_id="8", lives=0)
    assert find_runs([run]) == [run, run / "mine" / "inner"]


def test_a_run_that_lies_elsewhere_is_found_by_a_link_to_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine").symlink_to(run)
    assert find_runs([tmp_path / "links"]) == [tmp_path / "links" / "mine"]


def test_a_history_is_read_anew_only_when_it_has_grown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parse = [], history.parse_lines

    def counted(lines: Iterable[str]) -> Iterable[dict[str, object]]:
        read.append(1)
        return parse(lines)

    monkeypatch.setattr(history, "parse_lines", counted)
    read_status(run, queue={})
    before = len(read)
    assert before <= 1
    assert len(History(run).lives()) == 1 and len(read) == before
    History(run).begin(job_id="7", nodes=["n1"], step=-1)
    assert len(History(run).lives()) == 2 and len(read) == before + 1


def test_a_few_ranks_stand_for_thousands_in_what_a_run_has_lost(tmp_path: Path) -> None:
    for rank in range(50):
        account = TimeAccount(tmp_path, rank=rank, life=1)
        account.shift(-100.0 * rank, source="compute", target="idle")
        account.flush(samples_seen=8)
    (whole,), (few,) = read_lives(tmp_path), read_lives(tmp_path, most_ranks=16)
    assert whole.seconds["compute"] == pytest.approx(2450, abs=1)
    assert few.seconds["compute"] == pytest.approx(2400, abs=1), "ranks 0, 4, …, 48"
    assert read_lives(tmp_path, most_ranks=50) == [whole]


def test_the_lives_of_a_long_run_come_by_their_number(run: Path) -> None:
    for life in (1000, 99, 999):
        write_start(run, life, f"{life}\n")
    write_start(run, 99, "again\n", number=10)
    write_start(run, 99, "once\n", number=2)
    lines = list(read_logs(run, rank=0, tail=0, follow=False, finished=lambda: True))
    assert [line.split(": ")[1] for line in lines] == ["99", "once", "again", "999", "1000"]


def test_of_logs_too_large_to_read_the_last_lines_are_found_from_their_end(run: Path) -> None:
    large, job = write_start(run, 1, ""), run / "logs" / "job-7.log"
    os.truncate(large, 1 << 40)
    with large.open("a") as file:
        file.write(f"\n{'x' * 100_000}\na\nb\n")
    job.write_text("c\nunfinished")
    lines = read_logs(run, rank=None, tail=3, follow=True, finished=lambda: bool(job.write_text("c\nand\n")))
    assert [next(lines).split(": ")[1] for _ in range(3)] == ["a", "b", "c"]
    assert list(lines) == ["job-7: and"]
    (longest, *_) = read_logs(run, rank=0, tail=3, follow=False, finished=lambda: True)
    assert longest.endswith("x" * 100_000)


def test_a_log_that_is_removed_between_two_looks_holds_nobody_up(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the batch script does with those of ranks that said nothing."""
    write_start(run, 1, "a\n")
    monkeypatch.setattr(logs, "_files", lambda directory, rank: [run / "logs" / "gone.log", *found])
    found = list((run / "logs").iterdir())
    lines = list(read_logs(run, rank=0, tail=3, follow=True, finished=lambda: True))
    assert [line.split(": ")[1] for line in lines] == ["a"]


def test_following_looks_no_more_at_starts_that_are_long_over(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.0)
    opened, read = Counter[str](), logs._new_lines

    def counted(path: Path, positions: dict[Path, int]) -> Iterable[str]:
        opened[path.name] += 1
        return read(path, positions)

    monkeypatch.setattr(logs, "_new_lines", counted)
    paths = [write_start(run, life, f"{life}\n") for life in range(1, 9)]
    polls = itertools.count()
    lines = read_logs(run, rank=None, tail=3, follow=True, finished=lambda: next(polls) == 4)
    assert [line.split(": ")[1] for line in lines] == ["6", "7", "8"]
    assert [opened[path.name] for path in paths[:5]] == [0] * 5, "nothing of them was asked for"
    assert opened[paths[-1].name] > 4
