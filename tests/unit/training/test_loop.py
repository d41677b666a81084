"""The loop over the smallest stage: when it evaluates, saves, stops, goes back, and the next life."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from tiny_stage import TinyRun

from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.runtime.account import process_age_seconds
from coatnet.runtime.lease import Lease, LeaseLost
from coatnet.runtime.lives import read_lives
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, read_lines
from coatnet.runtime.stop import Stopped
from coatnet.training.loop import train_to_end
from coatnet.training.run import TrainingRun
from coatnet.training.sections import SaveConfig
from coatnet.training.state import RunState

Life = Callable[..., TinyRun]
NEVER = SaveConfig(every="90 minutes", last=100)
STEPS = [f"step {number}" for number in range(1, 9)]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    """Train in one folder, to the end or what comes before it, and return the run; without pictures."""
    monkeypatch.setattr("coatnet.runtime.metrics_log.MetricsLog._show", lambda *_: None)
    monkeypatch.setattr("coatnet.training.recorder.Recorder._draw", lambda *_: None)
    begun: list[TinyRun] = []

    def live(folder: str = "run", **options: object) -> TinyRun:
        run = TinyRun(tmp_path / folder, **options)  # type: ignore[arg-type]
        begun.append(run)
        train_to_end(run)
        return run

    yield live
    for run in begun:
        run.watchdog.stop()


def kinds(run: TinyRun) -> list[str]:
    return [event["kind"] for event in run.run.read_events()]


def test_a_run_evaluates_and_saves_when_the_calendar_says_so_and_at_its_end(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    age = process_age_seconds()
    run = life()
    assert run.noted == [
        *("step 1", "step 2", "save 2", "step 3", "evaluate 3", "step 4", "save 4", "step 5"),
        *("step 6", "evaluate 6", "save 6", "step 7", "step 8", "evaluate 8", "save 8 and wait"),
    ]
    assert json.loads(run.run.summary.read_text()) == {"steps": 8, "top1": 0.5}
    done = run.run.marker("done")
    assert done is not None and done["samples_seen"] == 64 and run.run.marker("stopped") is None
    said = capsys.readouterr().err
    assert f"{run.run.path} starts small: 1 rank on cpu, ZeRO 0, 0 of 64 images seen\n" in said
    assert f"done after 64 images; `coatnet report {run.run.path}` shows it\n" in said
    (start,) = run.run.read_events()
    told = {"kind": "start", "life": 0, "samples_seen": 0, "step": 0, "world_size": 1, "stage": 0}
    assert start == {"time": start["time"], **told}
    (account,) = read_lives(run.run.account)
    assert account.samples_seen == 64
    spent = run.account.seconds()
    assert min(spent[name] for name in ("start", "compute", "evaluation", "checkpoint", "idle")) > 0
    assert spent["start"] > age, "imports belong to it"


def test_a_life_that_dies_leaves_its_account_and_the_next_one_goes_on_to_the_same_bits(
    life: Life, tmp_path: Path
) -> None:
    def die(run: TinyRun) -> None:
        raise RuntimeError("a rank was lost")

    whole = life("whole")
    with pytest.raises(RuntimeError, match="a rank was lost"):
        life(happens={6: die})
    (account,) = read_lives(tmp_path / "run" / "account")
    assert account.samples_seen == 40, "what was under way is finished"
    run = life()
    assert run.noted[:4] == ["step 5 redone", "step 6", "evaluate 6", "save 6"]
    assert run.model.weight.item() == whole.model.weight.item()
    assert kinds(run) == ["start", "resume", "loss_continuity"]
    resumed, compared = run.run.read_events()[1:]
    assert (resumed["step"], resumed["samples_seen"]) == (4, 32)
    assert compared["continuous"] and compared["samples_seen"] == 40


def test_a_life_whose_loss_is_not_the_recorded_one_says_so_and_goes_on(
    life: Life, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def another_machine(run: TinyRun) -> None:
        with torch.no_grad():
            run.model.weight.mul_(1.5)

    def die(run: TinyRun) -> None:
        raise RuntimeError("a rank was lost")

    with pytest.raises(RuntimeError, match="a rank was lost"):
        life(happens={6: die})
    (recorded,) = [
        row["train/loss"]
        for row in read_lines(tmp_path / "run/metrics.jsonl")
        if row.get("samples_seen") == 40 and "train/loss" in row
    ]
    run = life(happens={5: another_machine})
    (compared,) = [event for event in run.run.read_events() if event["kind"] == "loss_continuity"]
    assert not compared["continuous"] and compared["recorded"] == recorded
    said = f"the loss DOES NOT go on as recorded before: {compared['loss']:.6g}, was {recorded:.6g}\n"
    assert said in capsys.readouterr().err
    assert run.run.marker("done") is not None


def test_a_stop_saves_the_step_under_way_and_the_same_command_goes_on(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = life("whole", save=NEVER)
    run = life(save=NEVER, happens={2: TinyRun.ask_to_stop})
    # The wish of a step was made before it.
    assert run.noted == ["step 1", "step 2", "step 3", "evaluate 3", "save 3 and wait"]
    stopped = run.run.marker("stopped")
    assert stopped is not None and (stopped["samples_seen"], stopped["reason"]) == (24, "SIGTERM")
    assert run.run.marker("done") is None and not run.run.summary.exists()
    assert (
        "stopped and saved after 24 images; the same command goes on from there\n" in capsys.readouterr().err
    )
    run = life(save=NEVER)
    assert run.noted == [*STEPS[3:6], "evaluate 6", *STEPS[6:], "evaluate 8", "save 8 and wait"]
    said = capsys.readouterr().err
    assert "resumes after step 3: 1 rank on cpu, ZeRO 0, 24 of 64 images seen" in said
    assert "tiny: 64/64, 0:00 left" in said
    assert run.model.weight.item() == whole.model.weight.item()


def test_a_run_that_is_told_to_stop_while_it_starts_takes_no_step(tmp_path: Path) -> None:
    run = TinyRun(tmp_path / "run")
    run.rehearse = run.ask_to_stop  # type: ignore[method-assign]
    train_to_end(run)
    assert run.noted == [] and run.run.marker("stopped") is not None
    assert not run.checkpoints.store.steps()


def test_a_signal_ends_the_start_of_one_rank_at_once(tmp_path: Path) -> None:
    run = TinyRun(tmp_path / "run")

    def rehearse() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run.noted.append("behind the signal")

    run.rehearse = rehearse  # type: ignore[method-assign]
    with run._stop, pytest.raises(Stopped):
        train_to_end(run)
    run.watchdog.stop()
    assert run.noted == []


@pytest.mark.parametrize("step", [1, 4])
def test_a_stop_while_a_batch_does_not_come_saves_what_was_reached_if_anything_was(
    life: Life, step: int
) -> None:
    run = life(save=NEVER, away=8 * (step - 1))
    reached = [*STEPS[: step - 1], "evaluate 3", f"save {step - 1} and wait"]
    assert run.noted == (reached if step > 1 else []) and run.run.marker("stopped") is not None
    assert run.checkpoints.store.steps() == [step - 1][step == 1 :]
    assert life(save=NEVER).noted[0] == STEPS[step - 1]


def test_a_step_that_another_rank_leaves_is_nobodys_and_the_one_before_it_is_saved(life: Life) -> None:
    whole = life("whole", save=NEVER)
    run = life(save=NEVER, happens={5: "left"})
    assert run.noted[-2:] == ["step 5", "save 4 and wait"] and kinds(run) == ["start"]
    facts = Checkpoint(run.checkpoints.store.path(4)).facts["progress"]
    assert (facts["samples_seen"], facts["skipped_in_a_row"]) == (32, 0)
    run = life(save=NEVER)
    assert run.noted[0] == "step 5" and run.model.weight.item() == whole.model.weight.item()


@pytest.mark.parametrize("step", [3, 8])
def test_an_evaluation_that_a_stop_ends_is_saved_as_such_and_made_up_for_before_the_next_step(
    life: Life, step: int
) -> None:
    run = life(save=NEVER, happens={-step: "stop"})
    assert run.noted[-2:] == [f"evaluate {step}", f"save {step} and wait"]
    assert run.run.marker("done") is None and run.run.marker("stopped") is not None
    place = run.checkpoints.store.path(step)
    assert Checkpoint(place).facts["progress"]["unevaluated"]
    run = life(save=NEVER)
    assert run.noted[:2] == [f"evaluate {step}", f"save {step} and wait"]
    assert run.noted[2:3] == STEPS[step : step + 1]
    facts = Checkpoint(place).facts
    assert facts["figures"] == {"top1": 0.5} and not facts["progress"]["unevaluated"]
    assert run.run.marker("done") is not None


def test_a_make_up_that_is_stopped_as_well_takes_no_step_and_stays_to_be_made(life: Life) -> None:
    life(save=NEVER, happens={-3: "stop"})
    run = life(save=NEVER, happens={-3: "stop"})
    assert run.noted == ["evaluate 3", "save 3 and wait"]
    assert run.run.marker("done") is None
    assert life(save=NEVER).noted[:3] == ["evaluate 3", "save 3 and wait", "step 4"]


def test_a_refused_step_moves_on_is_told_and_kept_with_what_was_found_behind_it(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    run = life(happens={3: "refused"})
    assert run.noted[3:7] == ["step 3", "evaluate 3", "keep skipped_step 3 ['top1']", "step 4"]
    told = run.run.read_events()[1]
    assert (told["kind"], told["step"], told["positions"]) == ("skipped_step", 3, list(range(16, 24)))
    assert re.search(
        r"step 3: skipped step, loss \S+, gradient norm \S+$", capsys.readouterr().err, re.MULTILINE
    )
    facts = Checkpoint(run.checkpoints.store.path(8)).facts["progress"]
    assert (facts["step"], facts["applied_steps"], facts["skipped_in_a_row"]) == (8, 7, 0)


def test_ten_refused_steps_in_a_row_end_the_run_when_the_samples_of_the_last_are_named_too(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatnet.training.run._MAX_REFUSED_IN_A_ROW", 3)
    with pytest.raises(
        UserError, match=r"3 steps in a row were refused, the last at step 5 .*the most that are"
    ):
        life(happens=dict.fromkeys((1, 3, 4, 5), "refused"))
    told = [
        event for event in RunDirectory(tmp_path / "run").read_events() if event["kind"] == "skipped_step"
    ]
    assert [event["step"] for event in told] == [1, 3, 4, 5] and told[-1]["positions"] == [*range(32, 40)]


def test_a_step_that_is_rolled_back_is_neither_evaluated_nor_saved_and_what_follows_is_redone(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    run = life(happens={6: "spike"})
    assert run.noted == [
        *("step 1", "step 2", "save 2", "step 3", "evaluate 3", "step 4", "save 4", "step 5", "step 6"),
        *("keep spike 6 []", "step 5 redone", "step 6 redone", "evaluate 6", "save 6", "step 7", "step 8"),
        *("evaluate 8", "save 8 and wait"),
    ]
    assert kinds(run) == ["start", "spike"] and run.run.read_events()[1]["score"] == "12.5"
    assert "pretrain" not in (said := capsys.readouterr().err) and "tiny: 64/64, 0:00 left" in said
    assert re.search(r"step 6: spike, loss \S+, gradient norm \S+, robust z-score 12.5$", said, re.MULTILINE)


def test_a_save_by_the_clock_is_asked_for_by_a_wish_and_waits_for_nobody(life: Life) -> None:
    def time_is_up(run: TinyRun) -> None:
        run.checkpoints._saved_at = -math.inf

    run = life(save=NEVER, happens={4: time_is_up})
    assert run.noted[4:8] == ["step 4", "step 5", "save 5", "step 6"]


def test_the_best_so_far_is_saved_where_no_save_is_due(life: Life) -> None:
    best = SaveConfig(every="90 minutes", best="top1", last=100)
    run = life(save=best, happens={"top1": {3: 0.7, 6: 0.6, 8: 0.6}})
    assert [word for word in run.noted if word.startswith("save")] == ["save 3", "save 8 and wait"]


@pytest.mark.parametrize("happens", [{}, {2: TinyRun.ask_to_stop}])
def test_a_job_whose_run_was_taken_over_since_its_last_save_leaves_no_marker_in_it(
    tmp_path: Path, life: Life, monkeypatch: pytest.MonkeyPatch, happens: dict[int, object]
) -> None:
    lease = Lease.acquire(tmp_path / "run")

    def close(run: TinyRun, state: RunState | None) -> None:
        TrainingRun.close(run, state)
        run.checkpoints.store.check_lease = lease.check
        (tmp_path / "run" / "lease" / f"epoch-{lease.epoch + 1:08d}").touch()

    monkeypatch.setattr(TinyRun, "close", close)
    with pytest.raises(LeaseLost):
        life(save=NEVER, happens=happens)
    lease.release()
    run = RunDirectory(tmp_path / "run")
    assert run.marker("done") is None is run.marker("stopped") and not run.summary.exists()


def test_a_job_whose_run_was_taken_over_hears_of_it_at_its_next_step_and_takes_no_other(
    tmp_path: Path, life: Life
) -> None:
    lease, lives = Lease.acquire(tmp_path / "run"), list[TinyRun]()

    def taken_over(run: TinyRun) -> None:
        lives.append(run)
        run.checkpoints.store._lease = lease
        (tmp_path / "run" / "lease" / f"epoch-{lease.epoch + 1:08d}").touch()
        with pytest.raises(LeaseLost):
            lease.check()  # as the thread that beats does, every second

    with pytest.raises(LeaseLost):
        life(save=NEVER, happens={2: taken_over})
    assert lives[0].noted == ["step 1", "step 2"]


def test_a_life_leaves_its_account_up_to_its_last_step_in_the_metrics_and_then_closes_the_board(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, close = list[int](), MetricsLog.close

    def note(metrics: MetricsLog) -> None:
        closed.append([*read_lines(metrics._run.metrics)][-1]["samples_seen"])
        close(metrics)

    monkeypatch.setattr(MetricsLog, "close", note)
    run = life(save=NEVER, happens={1: TinyRun.ask_to_stop})  # before any evaluation, which flushes, too
    rows = [row for row in read_lines(run.run.metrics) if "account/compute" in row]
    assert [row["samples_seen"] for row in rows] == [16] == closed


def test_a_start_is_recorded_with_as_many_ranks_as_there_are(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    run.ranks = Ranks(world_size=4)
    run.resume()
    run.watchdog.stop()
    run.account.close()
    assert [(event["kind"], event["world_size"]) for event in run.run.read_events()] == [("start", 4)]


def test_a_life_that_ends_by_an_error_finishes_the_save_under_way_first(
    tmp_path: Path, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, write, close = threading.Event(), CheckpointStore._write, TinyRun.close

    def write_late(store: CheckpointStore, *given: Any) -> None:
        assert closing.wait(60)
        write(store, *given)

    def note_and_close(run: TinyRun, state: RunState | None) -> None:
        closing.set()
        close(run, state)
        assert run.watchdog._held == 1, "what is saved last may take longer than a step"

    def fail(run: TinyRun) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CheckpointStore, "_write", write_late)
    monkeypatch.setattr(TinyRun, "close", note_and_close)
    with pytest.raises(ZeroDivisionError):
        life(happens={3: fail})
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000002"]


def test_a_run_whose_last_checkpoint_is_not_there_is_not_done(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyRun, "save", lambda run, state, *, wait: None)
    with pytest.raises(UserError, match="of step 8, could not be saved"):
        life()
    run = RunDirectory(tmp_path / "run")
    assert run.marker("done") is None and not run.summary.exists()
    assert [row["account/start"] > 0 for row in read_lines(run.metrics) if "account/start" in row]
