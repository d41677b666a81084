"""The logs of a run as one stream, and when following them ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import cli, logs
from cluster.history import History
from cluster.job import Job, write_job
from cluster.logs import EndByHand, read_logs
from cluster.site import SiteConfig
from cluster.status import has_finished
from coatnet.config import UserError
from coatnet.runtime.lease import Lease
from coatnet.runtime.run_directory import RunDirectory


def test_logs_come_in_the_order_of_lives_and_one_rank_at_a_time(run: Path) -> None:
    (run / "logs" / "job-7.log").write_text("job\n")
    for name, text in (
        ("life-001.try-1.rank-0", "a"),
        ("life-002.try-1.rank-0", "b"),
        ("life-001.try-1.rank-1", "c"),
    ):
        (run / "logs" / f"{name}.log").write_text(f"{text}\nunfinished")
    finished = lambda: True  # noqa: E731
    lines = list(read_logs(run, rank=None, tail=0, follow=False, finished=finished))
    assert [line.split(": ")[1] for line in lines] == ["a", "b", "job"]
    assert [line[-1] for line in read_logs(run, rank=1, tail=0, follow=False, finished=finished)] == ["c"]


def test_the_lines_of_an_arrays_tasks_say_whose_they_are(run: Path) -> None:
    for task in ("task-0000", "task-0001"):
        (run / task / "logs").mkdir(parents=True)
        (run / task / "logs" / "life-001.try-1.rank-0.log").write_text("done\n")
    lines = list(read_logs(run, rank=None, tail=0, follow=False, finished=lambda: True))
    assert lines == [f"task-000{number}/life-001.try-1.rank-0: done" for number in (0, 1)]


def test_a_run_by_hand_has_a_log_per_rank_beside_its_reports_and_one_can_be_chosen(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "logs").mkdir()
    for rank in range(2):
        (tmp_path / "logs" / f"rank{rank}.log").write_text(f"of {rank}\n")
    run.append(run.metrics, {"samples_seen": 64, "train/loss": 1.25})
    with run.metrics.open("a") as file:
        file.write('[1]\n"no record"\n{cut')

    def told(rank: int | None) -> list[str]:
        return list(read_logs(tmp_path, rank=rank, tail=0, follow=False, finished=lambda: True))

    assert told(1) == ["rank1: of 1"]
    assert told(None) == ["metrics: 64 images, train/loss 1.25", "rank0: of 0", "rank1: of 1"]
    History(tmp_path).note("submitted", job_id="7", folder="0001", lives=0)
    assert told(None) == ["rank0: of 0", "rank1: of 1"], "its ranks' logs tell that"


def test_following_ends_after_the_last_lines_of_a_finished_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.logs._POLL_SECONDS", 0.01)
    path = run / "logs" / "life-001.try-1.rank-0.log"
    path.write_text("first\n")
    asked = []

    def finished() -> bool:
        asked.append(len(asked))
        with path.open("a") as file:
            file.write(f"line {len(asked)}\n")
        return len(asked) == 2

    lines = list(read_logs(run, rank=0, tail=0, follow=True, finished=finished))
    assert [line.split(": ")[1] for line in lines] == ["first", "line 1", "line 2"]


def test_a_failed_run_has_finished_until_it_is_submitted_again(run: Path) -> None:
    history = History(run)
    assert not has_finished(run)
    history.end(history.lives()[0], outcome="failed", reason="boom", tries=3, excluded={})
    assert has_finished(run)
    history.note("submitted", job_id="8", folder="0002", lives=1)
    assert not has_finished(run)
    RunDirectory(run).mark("cancelled")
    assert has_finished(run)


@pytest.mark.parametrize("marker", ["done", "cancelled"])
def test_following_waits_for_what_the_batch_script_says_last_unless_it_was_killed(
    run: Path, marker: str
) -> None:
    RunDirectory(run).mark(marker)
    log, history = run / "logs" / "job-7.log", History(run)
    log.write_text("TERM: SLURM ends the job\n")
    assert not has_finished(run)
    os.utime(log, (0, 0))
    assert has_finished(run)
    log.touch()
    history.end(history.lives()[0], outcome="ended", reason="cancelled by the user", tries=1, excluded={})
    assert has_finished(run)


def test_a_run_whose_batch_script_never_wrote_a_word_has_none_left(run: Path) -> None:
    RunDirectory(run).mark("held", reason="three lives")
    assert has_finished(run)


@pytest.mark.parametrize(("continuation", "ends"), [("requeue", False), ("none", True)])
def test_a_run_that_stopped_at_its_limit_has_finished_where_nothing_continues_it(
    run: Path, continuation: str, ends: bool
) -> None:
    (run / "submissions" / "0001").mkdir(parents=True)
    job = Job("first", str(run), ["pretrain"], site=SiteConfig(continuation=continuation))
    write_job(job, run / "submissions" / "0001" / "job.json")
    history = History(run)
    history.end(history.lives()[0], outcome="stopped", reason="saved", tries=1, excluded={})
    assert has_finished(run) is ends


def test_a_run_without_logs_is_told_and_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="holds no run"):
        cli.logs(tmp_path, follow=False, rank=None, tail=100)
    (tmp_path / "config.yaml").touch()
    cli.logs(tmp_path, follow=False, rank=None, tail=100)
    told = capsys.readouterr().err
    assert "started by hand" in told and "no logs" in told


def test_following_a_run_that_was_started_by_hand_tells_what_it_reports_and_ends_with_it(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path)
    lease = Lease.acquire(tmp_path)
    run.record_event("start", step=0)
    run.append(run.metrics, {"samples_seen": 64, "train/loss": 1.25, "images_per_second": 40.0})
    run.append(run.metrics, {"samples_seen": 64, "account/start": 2.0})
    lines = read_logs(tmp_path, rank=None, tail=0, follow=True, finished=EndByHand(tmp_path))
    assert next(lines) == "events: kind start step 0"
    assert next(lines) == "metrics: 64 images, train/loss 1.25, images_per_second 40"
    run.append(run.metrics, {"samples_seen": 128, "evaluate/top1": 0.5})
    assert next(lines) == "metrics: 128 images, evaluate/top1 0.5"
    lease.release()  # as when it was killed: no marker tells the end
    assert list(lines) == []


def test_a_run_by_hand_whose_start_still_loads_its_libraries_has_not_ended(tmp_path: Path) -> None:
    run, ended = RunDirectory(tmp_path), EndByHand(tmp_path)
    run.mark("stopped", reason="an earlier start's")
    assert not ended() and not ended.runs(), "nobody holds it yet, and what stopped was before"
    lease = Lease.acquire(tmp_path)
    assert not ended() and ended.runs()
    lease.release()
    assert ended()


def test_a_run_by_hand_that_began_and_ended_between_two_looks_has_ended(tmp_path: Path) -> None:
    ended = EndByHand(tmp_path)
    Lease.acquire(tmp_path).release()
    assert ended()


def test_a_run_by_hand_that_nobody_starts_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = EndByHand(tmp_path)
    monkeypatch.setattr(logs, "_START_SECONDS", 0.0)
    assert EndByHand(tmp_path)() and not finished()
    RunDirectory(tmp_path).mark("done")
    assert finished(), "nothing more comes of a finished run"


def test_a_run_that_may_not_go_on_has_finished_when_it_stopped(run: Path) -> None:
    history = History(run)
    history.end(history.lives()[0], outcome="stopped", reason="saved", tries=1, excluded={})
    assert not has_finished(run), "its next life is on the way"
    write_job(Job("first", str(run), ["pretrain"], site=SiteConfig(continuation="none")), job_file(run))
    assert has_finished(run)


def job_file(run: Path) -> Path:
    path = run / "submissions" / "0001" / "job.json"
    path.parent.mkdir(parents=True)
    return path


def test_the_last_lines_of_a_long_log_are_its_last(run: Path) -> None:
    text = "".join(f"{'x' * 80} {number}\n" for number in range(30_000))
    (run / "logs" / "job-7.log").write_text(text)
    lines = list(read_logs(run, rank=None, tail=2, follow=False, finished=lambda: True))
    assert [line.rpartition(" ")[2] for line in lines] == ["29998", "29999"]


def test_who_follows_a_run_that_waits_is_told_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        cli.logs(run, follow=True, rank=None, tail=100)
        return capsys.readouterr().err

    finished = iter([False, True, False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.status.has_finished", lambda directory: next(finished))
        assert f"{run}: no logs yet; coatnet status {run} says what it waits for\n" in told()
        (run / "logs" / "job-7.log").write_text("life 1\n")
        assert told() == ""
