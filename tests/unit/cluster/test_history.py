"""Lives are told by their beginnings: a kill leaves no last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.history import History
from cluster.progress import last_records, newest_step
from cluster.status import read_status


def commit(directory: Path, step: int) -> None:
    folder = directory / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()


def test_lives_that_begin_at_the_same_step_made_no_progress(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in (-1, 100, 100, 100):
        history.begin(job_id="1", nodes=["n1"], step=step)
    assert history.lives_without_progress(step=100) == 3
    assert history.lives_without_progress(step=200) == 0


def test_the_first_life_of_a_run_that_nobody_submitted_counts_as_well(tmp_path: Path) -> None:
    history = History(tmp_path)
    for _ in range(2):
        history.begin(job_id="1", nodes=["n1"], step=-1)
    assert history.lives_without_progress(step=-1) == 2


def test_a_run_awaits_a_life_from_each_submission_until_one_begins(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert not history.awaits_a_life()
    for number in range(2):
        history.note("submitted", job_id=f"{number}", folder=f"000{number}", lives=number)
        assert history.awaits_a_life()
        history.begin(job_id=f"{number}", nodes=["n1"], step=-1)
        assert not history.awaits_a_life()


def test_a_new_submission_begins_counting_anew(tmp_path: Path) -> None:
    history = History(tmp_path)
    for _ in range(3):
        history.begin(job_id="1", nodes=["n1"], step=5)
    history.note("submitted", job_id="2", folder="0002", lives=3)
    assert history.lives_without_progress(step=5) == 0
    history.begin(job_id="2", nodes=["n1"], step=5)
    assert history.lives_without_progress(step=5) == 1
    assert history.job_ids() == ["1", "2"]


def test_a_life_keeps_its_end_and_the_nodes_that_it_excluded(tmp_path: Path) -> None:
    history = History(tmp_path)
    life = history.begin(job_id="1", nodes=["n1", "n2"], step=-1)
    history.end(life, outcome="excluded", reason="n2: no", tries=0, excluded={"n2": "no"})
    found = History(tmp_path).lives()[0]
    assert (found.outcome, found.reason, found.excluded) == ("excluded", "n2: no", {"n2": "no"})
    assert history.excluded() == {"n2": "no"}


def test_a_torn_last_line_loses_itself_alone(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.begin(job_id="1", nodes=["n1"], step=-1)
    with (tmp_path / "lives.jsonl").open("a") as file:
        file.write('{"event": "end", "li')
    history.begin(job_id="1", nodes=["n1"], step=7)
    history.begin(job_id="1", nodes=["n1"], step=8)
    assert [life.step for life in history.lives()] == [-1, 7, 8]
    assert len((tmp_path / "lives.jsonl").read_text().splitlines()) == 4, "a line each, and the torn one"


@pytest.mark.parametrize(
    "line",
    [
        "[]", "7", "null", "{}", '{"event": "begin"}', '{"event": 3, "time": 1}', "\0\0\0", "é\udcff",
        '{"event": "begin", "time": 1, "life": "x", "job_id": "1", "nodes": [], "step": 0}',
        '{"event": "begin", "time": null, "life": 2, "job_id": "1", "nodes": [], "step": 0}',
        '{"event": "end", "time": 1, "life": 1, "outcome": null, "reason": "", "tries": 1, "excluded": {}}',
        '{"event": "submitted", "time": 1, "job_id": "1", "lives": "x"}',
        '{"event": "end", "time": 1, "life": 9, "outcome": "x", "reason": "", "tries": 1, "excluded": {}}',
        '{"event": "somebody else", "time": 1}',
    ],
)  # fmt: skip
def test_garbage_in_the_history_changes_nothing(line: str, tmp_path: Path) -> None:
    history = History(tmp_path)
    (tmp_path / "lives.jsonl").write_text(f"{line}\n", errors="surrogateescape")
    history.note("submitted", job_id="1", folder="0001", lives=0)
    history.begin(job_id="1", nodes=["n1"], step=-1)
    with (tmp_path / "lives.jsonl").open("a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    history.begin(job_id="1", nodes=["n1"], step=-1)
    assert [(life.number, life.outcome) for life in history.lives()] == [(1, ""), (2, "")]
    assert history.lives_without_progress(step=-1) == 2
    assert history.job_ids() == ["1"] and history.excluded() == {}
    assert read_status(tmp_path, queue={}).state == "lost"


def test_an_empty_history_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "lives.jsonl").touch()
    history = History(tmp_path)
    history.begin(job_id="1", nodes=["n1"], step=-1)
    assert len(history.lives()) == 1


def test_progress_is_the_newest_committed_checkpoint(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    commit(tmp_path, 900)
    commit(tmp_path, 1000)
    (tmp_path / "checkpoints" / "step-00001100").mkdir()  # not committed
    for name in ("step-copy", "step-", "step--1"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "manifest.json").touch()
    assert newest_step(tmp_path) == 1000


def test_the_last_records_of_a_large_file_are_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"samples_seen": n}) + "\n" for n in range(20_000)) + '{"torn')
    assert [row["samples_seen"] for row in last_records(path, count=3)] == [19_998, 19_999]
