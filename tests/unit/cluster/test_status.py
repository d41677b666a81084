"""Every column of `coatnet status`, from what a run directory holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.history import SUPERVISOR, History
from cluster.slurm import QueuedJob
from cluster.status import read_status
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lives import CLASSES
from coatnet.runtime.run_directory import RunDirectory

RUNNING = {"7": QueuedJob("7_3", "RUNNING")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of job 7 whose first life goes on."""
    History(tmp_path).begin(job_id="7", nodes=["n1", "n2"], step=-1)
    return tmp_path


def end(run: Path, outcome: str, reason: str) -> None:
    history = History(run)
    history.end(history.lives()[-1], outcome=outcome, reason=reason, tries=1, excluded={})


def test_of_what_never_began_nothing_is_known(tmp_path: Path) -> None:
    found = read_status(tmp_path / "nothing", queue={})
    assert (found.state, found.detail) == ("lost", "never started, and SLURM knows no job of this run")
    assert (found.job_id, found.nodes, found.lives, found.last_error) == ("", [], 0, "")
    unknown = (found.step, found.samples_seen, found.total_samples, found.images_per_second)
    assert (*unknown, found.remaining_seconds, found.lost_seconds) == (None,) * 6


def test_a_run_tells_its_job_its_nodes_and_its_newest_checkpoint(run: Path) -> None:
    assert read_status(run, queue=RUNNING).step is None
    (run / "checkpoints" / "step-00000000").mkdir(parents=True)
    (run / "checkpoints" / "step-00000000" / "manifest.json").touch()
    found = read_status(run, queue=RUNNING)
    assert (found.job_id, found.nodes, found.lives, found.step) == ("7_3", ["n1", "n2"], 1, 0)
    assert read_status(run, queue=None).job_id == "7"


def test_a_run_that_was_submitted_is_told_by_its_job_and_not_as_one_that_was_started_by_hand(
    run: Path,
) -> None:
    RunDirectory(run).create("seed: 1\n", digest="aa")
    assert read_status(run, queue=RUNNING).state == "running"
    assert read_status(run, queue={}).state == "lost"


@pytest.mark.parametrize(
    ("outcome", "reason", "told"),
    [
        ("failed", "boom", "mend it, then submit again"),
        ("failed", "SLURM does not let it go on; submit again, or with --continuation chain", ""),
        ("stopped", "saved", "submit again"),
        ("excluded", "n1: bad", ""),  # waits for its next life
    ],
)
def test_what_somebody_has_to_do_is_said_where_slurm_was_asked(
    run: Path, outcome: str, reason: str, told: str
) -> None:
    assert read_status(run, queue=RUNNING).next_action == ""
    end(run, outcome, reason)
    assert read_status(run, queue={}).next_action == told
    assert read_status(run, queue=None).next_action == "", "its job may be waiting"
    RunDirectory(run).mark("held", reason="three lives")
    assert read_status(run, queue={}).next_action == "mend it, then submit again with --release"


def test_a_job_that_lives_outweighs_one_that_was_submitted_later(run: Path) -> None:
    History(run).note("submitted", job_id="8", lives=1)
    ended = QueuedJob("8", "CANCELLED")
    assert read_status(run, queue={**RUNNING, "8": ended}).state == "running"


def test_time_without_work_is_lost_until_now_or_the_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = History(run).lives()[0].started
    assert read_status(run, queue=RUNNING).lost_seconds is None, "nothing was accounted for yet"
    account = TimeAccount(RunDirectory(run).account, rank=0, life=1)
    account.shift(-30.0, source="compute", target="idle")  # as if it had computed for so long
    account.flush(samples_seen=8)
    assert read_status(run, queue=RUNNING).lost_seconds == 0.0
    monkeypatch.setattr("cluster.status.time", SimpleNamespace(time=lambda: began + 100))
    assert read_status(run, queue=RUNNING).lost_seconds == pytest.approx(70, abs=0.01)
    end(run, "stopped", "saved")
    assert read_status(run, queue=None).lost_seconds == 0.0


def test_a_life_that_was_killed_lost_its_start_and_its_end_is_that_of_its_account(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = History(run).lives()[0].started
    row = {"life": 1, "began": began + 40, "ended": began + 100, "samples_seen": 8}
    row["seconds"] = dict.fromkeys(CLASSES, 0.0) | {"compute": 45.0, "idle": 15.0}
    (run / "account").mkdir()
    (run / "account" / "earlier.jsonl").write_text(json.dumps(row) + "\n")
    assert read_status(run, queue=None).lost_seconds == pytest.approx(55, abs=0.01)
    row["seconds"] = dict.fromkeys(CLASSES, 0.0) | {"start": 60.0}
    (run / "account" / "earlier.jsonl").write_text(json.dumps(row) + "\n")
    assert read_status(run, queue=None).lost_seconds is None, "nothing was done yet, and nothing lost"
    row["seconds"]["compute"] = 45.0
    (run / "account" / "earlier.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr("cluster.history.time", SimpleNamespace(time=lambda: began + 200))
    end(run, "ended", "its nodes were drained")
    assert read_status(run, queue=None).lost_seconds == pytest.approx(155, abs=0.01)


def test_a_run_of_an_unknown_length_has_a_rate_and_no_end(run: Path) -> None:
    began = History(run).lives()[0].started
    rows = [{"samples_seen": 8 * at, "time": began + at} for at in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_status(run, queue=RUNNING)
    assert (found.images_per_second, found.total_samples, found.remaining_seconds) == (8.0, None, None)


@pytest.mark.parametrize(
    ("samples", "progress"), [((8, 8), 0.0), ((8, 4), 0), ((8, 8), None)], ids=["none", "back", "unknown"]
)
def test_records_without_progress_tell_no_rate_and_no_end(
    run: Path, samples: tuple[int, int], progress: float | None
) -> None:
    began = History(run).lives()[0].started
    rows = [
        {"samples_seen": seen, "time": began + at, "progress": progress}
        for at, seen in enumerate(samples, start=1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_status(run, queue=RUNNING)
    assert found.samples_seen == samples[-1]
    assert (found.total_samples, found.images_per_second, found.remaining_seconds) == (None, None, None)


def test_the_last_error_is_that_of_the_last_life_that_failed(run: Path) -> None:
    end(run, "excluded", "n1: fan is dead")
    History(run).begin(job_id="7", nodes=["n2"], step=-1)
    end(run, "failed", "boom")
    History(run).begin(job_id="7", nodes=["n2"], step=-1)
    assert read_status(run, queue=RUNNING).last_error == "life 2: boom"


def test_before_a_life_has_failed_its_last_retry_is_the_last_error(run: Path) -> None:
    record = RunDirectory(run).record_event
    for reason in ("first", "second"):
        record("retry", writer=SUPERVISOR, reason=reason)
    record("life", writer=SUPERVISOR, reason="saved")
    assert read_status(run, queue=RUNNING).last_error == "second"


@pytest.mark.parametrize(
    ("outcome", "job", "expected"),
    [
        ("excluded", None, ("waiting", "why")),
        ("ended", None, ("ended", "why")),
        ("stopped", None, ("stopped", "why")),
        ("stopped", "COMPLETED", ("stopped", "why")),
        ("stopped", "CANCELLED", ("cancelled", "scancel")),
        ("failed", "CANCELLED", ("failed", "why")),
        ("ended", "PREEMPTED", ("preempted", "why")),
    ],
)
def test_a_run_between_its_lives_is_what_its_last_one_came_to(
    run: Path, outcome: str, job: str | None, expected: tuple[str, str]
) -> None:
    end(run, outcome, "why")
    found = read_status(run, queue={"7": QueuedJob("7", job)} if job else {})
    assert (found.state, found.detail) == expected


def test_what_slurm_gives_no_reason_for_has_none_in_brackets(run: Path) -> None:
    assert read_status(run, queue={"7": QueuedJob("7", "FAILED")}).detail.endswith("SLURM says FAILED")


def test_a_running_job_outweighs_one_that_waits_longer(run: Path) -> None:
    History(run).note("submitted", job_id="6", lives=1)
    History(run).begin(job_id="8", nodes=["n3"], step=-1)
    waiting = {"7": QueuedJob("7", "PENDING"), "8": QueuedJob("8", "RUNNING")}
    assert read_status(run, queue=waiting).job_id == "8"
