"""The report shows what the run directory holds, in one self-contained page."""

from __future__ import annotations

import json
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from reported_runs import make_run, save_checkpoint, told

from coatnet.config import UserError
from coatnet.report.record import read_run
from coatnet.report.write import _TROUBLE, figures, write_report
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.run_directory import RunDirectory, append_line


def test_the_page_needs_nothing_from_outside_and_lets_no_markup_through(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!#)|@import|url\(", page)
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;bold" in page
    assert page.count("<svg") >= 3
    assert len(page) < 200_000


def test_the_figures_say_state_lives_time_and_the_plans_error(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    found = figures(read_run(tmp_path / "run"))
    assert found["state"] == "done" and found["lives"] == 2 and round(found["seconds"]) == 100
    assert found["last"]["evaluate/top1"] == 0.75 and "odd" not in found["last"]
    assert found["events"]["bad_sample"] == 1
    compared = found["predicted_against_measured"]["train/loss"]
    assert compared["predicted"] == 0.002 and abs(compared["error"]) < 0.05


@pytest.mark.parametrize(
    ("batches", "row", "rate_error"),
    [((100, 100, 200), "100 | 125 | +25.0%", -0.2), ((100, 200, 200), "250 | 250 | +0.0%", 0.0)],
)
def test_a_run_that_changed_its_batch_is_set_beside_the_plan_of_the_one_that_it_had_longest(
    tmp_path: Path, batches: tuple[int, ...], row: str, rate_error: float
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    steps = {100: 0.1, 200: 0.25}  # seconds of each global batch
    stretches = [{"global_batch": batch, "steps": 9, "step_seconds": steps[batch]} for batch in steps]
    plan = {"step_seconds": 0.1, "images_per_second": 1000.0, "stretches": stretches}
    run.plan.write_text(json.dumps(plan))
    for step, batch in enumerate(batches, start=1):
        append_line(
            run.metrics, {"samples_seen": step, "train/global_batch": batch, "images_per_second": 800.0}
        )
    compared = figures(read_run(run.path))["predicted_against_measured"]
    assert compared["images_per_second"]["error"] == pytest.approx(rate_error)
    assert f"| step, ms | {row} |" in told(run)


def test_the_headline_tells_what_the_last_evaluation_found_and_the_usual_rate(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for position, top1, rate in ((8, 0.5, 100.0), (16, 0.6, 200.0), (24, 0.9, 700.0)):
        append_line(run.metrics, {"samples_seen": position, "evaluate/top1": top1, "images_per_second": rate})
    text = told(run)
    assert "| top-1 | 90.00% |" in text and "| images/s, median | 200 |" in text


def test_a_plan_is_set_beside_the_steps_of_the_life_whose_start_made_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    run.plan.write_text('{"images_per_second": 100.0, "memory_bytes": 1073741824}')
    run.record_event("start", life=1, samples_seen=0, world_size=1)
    for position in (8, 16, 24):
        append_line(run.metrics, {"samples_seen": position, "images_per_second": 400.0, "memory_gib": 8.0})
    assert "Each start plans anew" not in told(run) and "| life | 1 |" in told(run)
    run.record_event("resume", life=2, samples_seen=24, world_size=1)
    assert "No step has been recorded since the plan was made." in told(run) and "| lives | 2 |" in told(run)
    append_line(run.metrics, {"samples_seen": 32, "images_per_second": 110.0, "memory_gib": 1.5})
    compared = figures(read_run(run.path))["predicted_against_measured"]
    assert compared["images_per_second"]["measured"] == 110.0 and compared["memory_bytes"]["error"] == 0.5
    assert "Each start plans anew" in told(run) and "| memory, GiB | 1 | 1.5 | +50.0% |" in told(run)


def test_the_markdown_holds_the_same_numbers(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    text = write_report(tmp_path / "run").with_suffix(".md").read_text()
    assert "| compute | 90.0 s | 90.0% |" in text and "| top-1 | 75.00% |" in text


HOSTILE = "</td><script>alert(1)</script>|`x`\n# not a title ${HOME} [a](javascript:b)\0\x1b[2J\u202e"


def test_hostile_names_stay_text_in_both_forms(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<img src=x onerror=alert(1)>")
    run.record_event("bad_sample", name=HOSTILE, reason=HOSTILE, substitute=HOSTILE, position=3)
    run.record_event("alarm", text=HOSTILE)
    run.config.write_text(f"model: {{name: coatnet_0}}\ndata: {{evaluate: '{HOSTILE[:29]}'}}\n# ```\n")
    append_line(run.metrics, {"samples_seen": 1, HOSTILE: 1.0})
    save_checkpoint(run, classes=[HOSTILE, "b"])
    page = write_report(run.path)
    tags = set(re.findall(r"<([a-zA-Z]+)", page.read_text()))
    assert not tags & {"script", "img", "a onerror"} and "javascript:b" in page.read_text()
    assert not re.search(r"<[^>]*onerror", page.read_text())
    text = page.with_suffix(".md").read_text()
    outside = "".join(text.split("````")[::2])
    assert "<script" not in outside and "\n# not a title" not in text and "| `x`" not in text
    for acting in "\0\x1b\u202e":
        assert acting not in page.read_text() and acting not in text


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    page = write_report(run.path)
    found = figures(read_run(run.path))
    assert "running or interrupted" in page.read_text() and "interruption" not in page.read_text()
    assert (found["lives"], found["samples_seen"]) == (0, 0)
    run.config.write_text("- no\n- config\n")
    assert "running or interrupted" in write_report(run.path).read_text()


def test_before_the_first_checkpoint_the_page_claims_no_size_and_before_the_first_step_no_time(
    tmp_path: Path,
) -> None:
    """How many classes there are stands in no config: it would be the default's thousand."""
    run = RunDirectory(tmp_path / "run")
    run.create("model: {name: coatnet_0, num_classes: 1000}\n", digest="aa")
    run.plan.write_text('{"step_seconds": 0.1}')
    text = told(run).partition("## Config")[0]
    assert "coatnet_0 at 224 px, report" in text and "parameters" not in text and "1000" not in text
    assert "wall time" not in text and "No step has been recorded since" in text
    save_checkpoint(run, classes=["ant", "bee"])
    assert "parameters, report" in told(run) and "| classes | 2: ant, bee |" in told(run)
    for number, content in ((2, '{"body": "{}"}'), (3, "[]"), (4, '{"body": "no text of JSON"}'), (5, "")):
        torn = run.checkpoints / f"step-{number:08d}"
        torn.mkdir()
        (torn / "manifest.json").write_text(content)
    assert "| classes | 2: ant, bee |" in told(run), "as the newest that says something of itself"


def test_a_run_that_cannot_be_written_is_reported_elsewhere(tmp_path: Path, mounted: Any) -> None:
    run, elsewhere = make_run(tmp_path / "run"), tmp_path / "mine" / "report"
    with mounted(run.path, "bind,ro", kind="none", source=str(run.path)):
        with pytest.raises(UserError, match=r"run/report\.html: Read-only file system; --destination"):
            write_report(run.path)
        assert write_report(run.path, destination=elsewhere) == elsewhere / "report.html"
    assert sorted(file.name for file in elsewhere.iterdir()) == ["report.html", "report.md"]


def test_two_hundred_lives_and_losses_that_are_no_numbers_make_a_page(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for life in range(1, 201):
        account = TimeAccount(run.account, rank=0, life=life, age_seconds=10.0)
        account.flush(samples_seen=life * 8)
        run.record_event("start" if life == 1 else "resume", samples_seen=life * 8 - 8, world_size=1)
        append_line(run.metrics, {"samples_seen": life * 8, "train/loss": float("nan")})
        append_line(run.metrics, {"samples_seen": life * 8, "train/gradient_norm": float("inf")})
        append_line(run.metrics, {"samples_seen": life * 8, "images_per_second": 5.0 + life})
    found = figures(read_run(run.path))
    assert found["lives"] == 200 and found["samples_seen"] == 1600
    assert "train/loss" not in found["last"] and found["last"]["images_per_second"] == 205.0
    page = write_report(run.path).read_text()
    assert len(page) < 400_000 and not re.search(r"[\"' ,](nan|inf)[\"' ,]", page)


def test_files_that_a_power_cut_left_as_garbage_leave_the_page_of_the_others(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    garbage = b"\x00\xff\xfe{"
    for path in (run.config, run.environment, run.summary, run.plan, run.path / "done"):
        path.write_bytes(garbage)
    with run.metrics.open("ab") as metrics:
        metrics.write(
            garbage + b'\n{"samples_seen": "x", "train/loss": 1}\n{"samples_seen": -8, "train/loss": 1}\n'
        )
        metrics.write(b'{"samples_seen": NaN, "train/loss": 1}\n{"samples_seen": 8, "train/loss": 1e999}\n')
    assert "done" in write_report(run.path).read_text()
    for path in (run.environment, run.summary, run.plan):
        path.write_text("[]")
    assert "done" in write_report(run.path).read_text()


def test_forty_thousand_records_make_a_small_page_that_keeps_every_spike(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    with run.metrics.open("w") as file:
        for step in range(40_000):
            loss = 50.0 if step == 27_777 else 1.0 + 0.001 * (step % 7)
            file.write(json.dumps({"samples_seen": step, "train/loss": loss, "time": step}) + "\n")
    record = read_run(run.path)
    assert (27_777, 50.0) in record.series["train/loss"] and len(record.series["train/loss"]) <= 620
    assert write_report(run.path).stat().st_size < 100_000


def test_the_lives_table_names_restarts_redone_work_and_the_time_between(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for number, (begin, end) in enumerate(((1000.0, 1060.0), (1090.0, 1200.0))):
        account = TimeAccount(run.account, rank=0, life=number)
        account._began, account._epoch_of_clock = begin, end - time.monotonic()
        account._seconds |= {"start": 4.0, "compile": 3.0, "redone": 10.0 * number}
        account.flush(samples_seen=100 - 20 * number)
    run.record_event("start", life=0, samples_seen=0, world_size=2)
    run.record_event("resume", life=1, samples_seen=90, world_size=1)
    text = told(run)
    assert "| 1 | 1970-01-01 00:16:40 | 1:00 | 0 | 100 | 2 | 7.0 s | 0.0 s | 30.0 s |" in text
    assert "| 2 | 1970-01-01 00:18:10 | 1:50 | 90 | 90 | 1 | 7.0 s | 10.0 s | – |" in text, "it took no step"
    page = (run.path / "report.html").read_text()
    assert "in the same colours, from 1970-01-01 00:16:40 to 00:20:00 UTC" in page
    assert "<title>life 2, redone: 10.0 s</title>" in page


def test_the_page_begins_with_what_interrupted_a_run_what_that_cost_and_what_went_wrong(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for life, began in ((1, 1000.0), (2, 701_000.0)):
        account = TimeAccount(run.account, rank=0, life=life)
        account._began, account._epoch_of_clock = began, began + 600_000 - time.monotonic()
        account._seconds["compute"], account._seconds["redone"] = 600_000.0 - 200 * life, 200.0 * life
        account.flush(samples_seen=100 * life)
    run.record_event("start", life=1, samples_seen=0, world_size=2)
    run.record_event("resume", life=2, samples_seen=90, world_size=2)
    run.record_event("loss_continuity", samples_seen=95, loss=1.0, recorded=1.0, continuous=True)
    text = told(run)
    top = text.partition("## ")[0]
    assert "1 interruption: 10:00 of work were done again, 1 d 3:46:40 passed between lives. After a" in top
    assert "No refused step, spike, rollback or alarm. The last sign of life came" in top
    assert "| compute | 13 d 21:10:00 | 92.3% |" in text and "| 2 | 1970-01-09 02:43:20 | 6 d" in text
    assert "| … of idle, between lives | 1 d 3:46:40 | 7.7% |" in text
    run.record_event("rollback", rank=0, step=6, loss="9.5")
    run.record_event("ended", rank=0, reason="a loss spike at step 6")
    top = told(run).partition("## ")[0]
    assert "ends by an error: 1. It ended by an error: a loss spike at step 6." in top
    run.record_event("resume", life=3, samples_seen=90, world_size=2)
    run.mark("held", reason="three lives without a step")
    top = told(run).partition("## ")[0]
    assert "The run is held: three lives without a step." in top and "It ended" not in top
    run.mark("done")
    top = told(run).partition("## ")[0]
    assert (
        "Rollbacks: 1; ends by an error: 1." in top
        and "It ended" not in top
        and "No refused" not in top
        and "sign of life" not in top
    )


def test_a_single_life_by_a_clock_that_is_ahead_was_not_interrupted_and_gave_its_last_sign_just_now(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    account = TimeAccount(run.account, rank=0, life=1, age_seconds=10.0)
    account._epoch_of_clock += 3600.0
    account.flush(samples_seen=8)
    top, _, rest = told(run).partition("## ")
    assert "No interruption. No refused step" in top and "The last sign of life came 0.0 s ago." in top
    assert "between lives" not in rest and "each life" not in (run.path / "report.html").read_text()
    run.mark("attempt")  # which a supervisor leaves behind
    assert "The last sign of life came 0.0 s ago." in told(run)


def test_what_a_supervisor_says_of_a_life_is_no_life_and_one_that_never_began_takes_nobodys_row(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for life in (1, 2, 3):
        account = TimeAccount(run.account, rank=0, life=life, age_seconds=1.0)
        account._began = 1000.0 * life
        account.flush(samples_seen=100 * life)
    run.record_event("start", life=1, samples_seen=0, world_size=2)
    run.record_event("life", writer="supervisor", life=1, outcome="stopped", reason="", excluded={})
    run.record_event("resume", life=3, samples_seen=90, world_size=4)  # 2 was killed while it started
    assert figures(read_run(run.path))["lives"] == 3
    rows = [line.split(" | ") for line in told(run).splitlines()]
    lives = [(row[0], row[3], row[5]) for row in rows if row[0] in ("| 1", "| 2", "| 3")]
    assert lives == [("| 1", "0", "2"), ("| 2", "–", "–"), ("| 3", "90", "4")]


def test_after_a_resume_the_later_record_of_a_position_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append_line(run.metrics, {"samples_seen": 0, "train/loss": 9.0})
    assert read_run(tmp_path / "run").series["train/loss"][0] == (0, 9.0)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path)


def test_a_single_rank_has_no_highest_one_and_short_cells_are_not_broken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append_line(run.metrics, {"samples_seen": 16008, "train/loss": 1.0, "train/loss_max": 1.0})
    assert "highest rank" in write_report(tmp_path / "run").read_text()
    alone = make_run(tmp_path / "alone")
    lines = [json.loads(line) for line in alone.metrics.read_text().splitlines()]
    alone.metrics.write_text("")
    for line in lines:
        append_line(alone.metrics, line | {"train/loss_max": line.get("train/loss")})
    page = write_report(tmp_path / "alone").read_text()
    assert "highest rank" not in page and "<td class=near>" in page


def test_what_ranks_and_lives_tell_again_counts_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    for _ in range(2):  # the second life goes back behind all of it
        for position, name in ((3, "a[0]"), (7, "a[1]"), (90, "a[0]")):  # the last in the next epoch
            run.record_event("bad_sample", rank=0, position=position, name=name, reason="torn")
        run.record_event("bad_sample", during="evaluation", position=0, name="a[0]", reason="torn")
        for rank in range(2):
            run.record_event("skipped_step", writer=rank, rank=rank, step=4, loss="nan")
            run.record_event("rollback", writer=rank, rank=rank, step=6, loss="9.5")
    for rank in range(2):  # other samples in the place of those that were left out
        run.record_event("rollback", writer=rank, rank=rank, step=6, loss="8.5")
    for rank in (1, 1):
        run.record_event("straggler", rank=rank, step=9)
    text = told(run)
    assert "| bad samples | 3 |" in text and "could not be used: 3, met 4 ×" in text
    assert "| a\\[0] | torn | 2 |" in text and "| a\\[0] | torn | 1 |" in text
    assert "not finite | 1 |" in text and "| rollbacks | 2 |" in text and "| slow ranks | 2 |" in text


def test_the_page_shows_no_markup_of_markdown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for kind in _TROUBLE:
        run.record_event(kind, rank=0)
    assert "`" not in write_report(run.path).read_text()


@pytest.mark.slow
def test_the_drive_through_weeks_tells_what_a_history_costs_its_readers(tmp_path: Path) -> None:
    drive = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "weeks.py"))["drive"]
    run = RunDirectory(tmp_path / "run")
    run.create("seed: 1\n", digest="aa")
    found = drive(run, steps=100, step_seconds=10_000.0, restarts=5, ranks=3, bad=4)
    assert found["records"] == 100 and found["page_mb"] > 0
    shown = figures(read_run(run.path))
    assert shown["lives"] == 5 and shown["events"]["bad_sample"] == 4
    assert shown["seconds"] == pytest.approx(1e6, rel=0.01)
