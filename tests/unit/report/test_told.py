"""What the page says of a run in words and figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from reported_runs import told

from coatnet.report.record import read_run
from coatnet.report.write import figures
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.run_directory import RunDirectory, append_line


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    found.create("seed: 1\n", digest="aa")
    return found


def compared(run: RunDirectory, *, loss: float, continuous: bool, tolerance: float = 1e-4) -> None:
    found = {"samples_seen": 8, "loss": loss, "recorded": 1.0, "tolerance": tolerance}
    run.record_event("loss_continuity", continuous=continuous, **found)


def test_a_loss_that_went_on_after_every_resume_is_one_sentence_with_the_widest_bound(
    run: RunDirectory,
) -> None:
    compared(run, loss=1.0, continuous=True)
    assert "After a resume the loss was the one recorded before, within 0.0001." in told(run)
    compared(run, loss=1.0, continuous=True, tolerance=2.0**-8)
    assert "After 2 resumes the loss was the one recorded before, within 0.0039." in told(run)


@pytest.mark.parametrize("times", [1, 10, 11])
def test_each_loss_that_did_not_go_on_is_told_up_to_ten(run: RunDirectory, times: int) -> None:
    compared(run, loss=1.0, continuous=True)
    for _ in range(times):
        compared(run, loss=2.5, continuous=False)
    top, _, rest = told(run).partition("## ")
    for text in (top, rest):
        assert text.count("the loss at image 8 was 2.5, recorded before: 1.0.") == min(times, 10)
        assert ("So it was after 11 of 12 resumes." in text) is (times == 11)
    assert "the one recorded before, within" not in top


def test_the_headline_tells_how_far_a_run_is_until_it_is_done_and_its_usual_speed(run: RunDirectory) -> None:
    for step, rate in enumerate((1.0, 30.0, 10.0), start=1):
        row = {"progress": step / 8, "images_per_second": rate, "mfu": rate / 100, "evaluate/ema_map": 0.25}
        row |= {"evaluate/map": 0.5, "evaluate/ema_top1": 0.75, "evaluate/precision1": 0.125, "time": 1e9}
        append_line(run.metrics, {"samples_seen": step, **row})
    account = TimeAccount(run.account, rank=0, life=1, age_seconds=100.0)
    for name, seconds in (("compute", 60.0), ("communication", 20.0), ("redone", 15.0)):
        account.shift(seconds, source="start", target=name)
    account.flush(samples_seen=3)
    rows = {"| of the run | 37.5% |", "| images/s, median | 10 |", "| MFU, median | 10.00% |"}
    rows |= {"| mAP, average | 25.00% |", "| mAP | 50.00% |", "| top-1, average | 75.00% |"}
    rows |= {"| precision@1 | 12.50% |", "| spent training | 80.0% |", "| wall time | 1:40 |"}
    assert rows <= {*told(run).splitlines()}
    assert "time" not in read_run(run.path).series
    append_line(run.metrics, {"samples_seen": 20_000, "train/loss": 0.5})
    run.mark("done")
    top = told(run).partition("## ")[0]
    assert "of the run" not in top and "| loss | 0.5 |" in top and "| images seen | 20k |" in top


@pytest.mark.parametrize("state", ["done", "cancelled", "held", "stopped"])
def test_the_strongest_marker_is_the_state_and_without_one_whether_the_last_life_ended_by_an_error(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    run.record_event("start", samples_seen=0, world_size=1)
    run.record_event("ended", reason="torn")
    run.record_event("alarm", text="nothing more")
    monkeypatch.chdir(run.path)
    found = read_run(Path())
    assert (found.name, found.state, found.error) == ("run", "ended by an error", "torn")
    run.mark("stopped")
    run.mark(state)
    assert figures(read_run(run.path))["state"] == state


def test_the_most_memory_is_set_beside_the_plans(run: RunDirectory) -> None:
    assert "no hardware profile fits" in told(run)
    run.environment.write_text('{"git_commit": "1a2b", "devices": ["H100"]}')
    run.plan.write_text(json.dumps({"memory_bytes": 2**31, "mfu": 0.4, "days": 3.0, "loss": 0}))
    for step, gib in enumerate((1.0, 3.0, 2.5), start=1):
        append_line(run.metrics, {"samples_seen": step, "memory_gib": gib, "mfu": 0.3, "loss": 1.0})
    assert "| memory, GiB | 2 | 3 | +50.0% |" in told(run) and "| MFU | 0.4 | 0.3 | -25.0% |" in told(run)
    assert '| git commit | 1a2b |\n| devices | \\["H100"] |' in told(run)
    assert [*figures(read_run(run.path))["predicted_against_measured"]] == ["memory_bytes", "mfu"]


@pytest.mark.parametrize("samples", [100, 101])
def test_the_bad_samples_that_were_met_most_come_first_and_a_hundred_of_them(
    run: RunDirectory, samples: int
) -> None:
    for number in range(samples):
        run.record_event("bad_sample", position=number, name=f"a{number:03d}", reason="torn")
    run.record_event("bad_sample", position=999, name="a099", reason="torn")
    text = told(run)
    assert f"could not be used: {samples}, met {samples + 1} ×" in text
    assert ("×; the 100 most frequent. In training" in text) is (samples > 100)
    rows = [line for line in text.splitlines() if line.endswith((" | torn | 1 |", " | torn | 2 |"))]
    assert len(rows) == 100 and rows[0] == "| a099 | torn | 2 |"


@pytest.mark.parametrize(
    ("events", "title"), [(1, "1 event"), (200, "200 events"), (201, "201 events, the last 200")]
)
def test_the_last_two_hundred_events_are_shown(run: RunDirectory, events: int, title: str) -> None:
    for number in range(events):
        run.record_event("alarm", text=f"number {number}", more={"deep": 1, "none": None})
    text = told(run)
    assert f"### {title}\n" in text and ("text number 0," in text) is (events <= 200)
    assert f"| alarm | text number {events - 1}, more deep 1, none null |" in text


def test_bad_samples_do_not_crowd_out_what_else_happened(run: RunDirectory) -> None:
    run.record_event("alarm", text="seldom")
    for number in range(201):
        run.record_event("bad_sample", position=number, name="a000", reason="torn")
    text = told(run)
    assert "| alarm | text seldom |" in text and "### 1 other event\n" in text
    assert "| bad_sample |" not in text
