"""What a run writes about itself, and that it goes on counting after a restart."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import build_model
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lives import CLASSES, read_lives
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.progress import progress
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, read_lines
from coatnet.training.earlier import read_earlier
from coatnet.training.pictures import account_figure, confusion_figure
from coatnet.training.recorder import LEAVE, SAVE, STOP, Recorder
from data_pipeline.batch import BadSample, Batch
from pretrain.activations import ActivationStatistics
from pretrain.state import State
from pretrain.trainer import PretrainResult

WANTED = {
    "train/loss",
    "train/loss_max",
    "train/learning_rate",
    "train/gradient_norm",
    "train/update_norm",
    "images_per_second",
    "data_wait_share",
    "memory_gib",
    "skipped_steps",
    "bad_samples",
    "evaluate/top1",
    *(f"account/{name}" for name in CLASSES),
}


def make_recorder(
    run: RunDirectory,
    *,
    life: int = 1,
    total: int = 16,
    account: TimeAccount | None = None,
    peak: float | None = None,
    ranks: Ranks | None = None,
) -> Recorder:
    if account is None:
        account = TimeAccount(run.account, rank=0, life=life)
        account.started()
    account.flush(samples_seen=0)
    return Recorder(
        run,
        ranks=ranks or Ranks(),
        account=account,
        metrics=MetricsLog(run, enabled=ranks is None),
        total=total,
        augmented=lambda batch: batch.images.float() / 255,
        flops_per_image=lambda begin: 1e9 if begin < 16 else 4e9,
        peak_flops=peak,
    )


def batch(*, bad: int = 0) -> Batch:
    rows = torch.arange(8)
    named = [BadSample(number, f"shard:{number}", "truncated", "shard:9") for number in range(bad)]
    return Batch(torch.zeros(8, 4, 4, 3, dtype=torch.uint8), rows, rows, rows, named)


def result(*, bad: int = 0, applied: bool = True) -> PretrainResult:
    return PretrainResult(
        samples=8,
        losses=[1.0, 3.0],
        seconds=[0.1, 0.1],
        gradient_norm=0.5,
        learning_rate=1e-3,
        applied=applied,
        digest=0,
        wishes=[0, 0],
        bad=bad,
    )


def test_images_that_no_evaluation_can_read_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.create("", digest="")
    recorder = make_recorder(run, life=1)
    bad = [BadSample(3, "shard:3", "truncated").to_dict()]
    for _ in range(2):
        recorder.evaluation(State(samples_seen=8), {"top1": 0.5}, bad=bad)
    recorder.close()
    named = [(event["name"], event["during"]) for event in run.read_events() if event["kind"] == "bad_sample"]
    assert named == [("shard:3", "evaluation")]
    assert capsys.readouterr().err.count("cannot be read: 1;") == 1


def take_step(recorder: Recorder, state: State, *, bad: int = 0, applied: bool = True) -> None:
    state.advance(samples=8, applied=applied, digest=0, bad=bad)
    event = None if applied else "skipped_step"
    with progress(None, "test", "images", enabled=False) as bar:
        recorder.step(state, batch(bad=bad), result(bad=bad, applied=applied), bar, event=event)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    found.create("seed: 1\n", digest="aa")
    return found


def test_tensorboard_gets_every_curve_and_picture(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder, state = make_recorder(run, life=1), State()
    for _ in range(2):
        take_step(recorder, state)
    recorder.occasional(state, {"train/update_norm": 0.1, "activations/S1/mean": 0.0})
    confusion = torch.tensor([[3, 1], [0, 4]])
    recorder.evaluation(state, {"top1": 0.875}, confusion=confusion, classes=["a$", "b"])
    recorder.flush(state)
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert set(events.Tags()["scalars"]) >= WANTED
    pictures = {name.split("/")[0] for name in events.Tags()["images"]}
    assert pictures == {"train", "evaluate", "account"}
    last = {}
    for row in read_lines(run.metrics):
        last.update(row)
    assert (last["train/loss"], last["train/loss_max"], last["progress"]) == (2.0, 3.0, 1.0)
    assert 0.05 < last["memory_gib"] < 50, "that a process with torch has had"


def test_the_main_rank_alone_tells_what_the_whole_run_has_met(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    make_recorder(run).alarm("a save failed")
    assert capsys.readouterr().err == "warning: a save failed\n"
    another, state = make_recorder(run, ranks=Ranks(rank=1, world_size=2)), State()
    another.alarm("a save failed")
    another.evaluation(state, {"top1": 0.5}, bad=[BadSample(3, "shard:3", "truncated").to_dict()])
    take_step(another, state, bad=1, applied=False)
    assert capsys.readouterr().err == ""
    assert [event["text"] for event in read_lines(run.events)] == ["a save failed"]
    own = [(event["kind"], event["rank"]) for event in read_lines(run.events_of(1))]
    assert own == [("bad_sample", 1), ("skipped_step", 1)]


def test_images_as_augmented_are_shown_at_the_start_and_after_an_evaluation_that_draws(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    monkeypatch.setattr(MetricsLog, "images", lambda *_, samples_seen: shown.append(samples_seen))
    monkeypatch.setattr(MetricsLog, "figure", lambda *_, samples_seen: None)
    recorder, state = make_recorder(run, total=100), State()
    for _ in range(3):
        take_step(recorder, state)
    recorder.evaluation(state, {"top1": 0.5})
    for _ in range(2):
        take_step(recorder, state)
    assert shown == [8, 32]


def test_three_thousand_evaluations_of_five_weeks_leave_few_pictures(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each they were gigabytes, which TensorBoard reads at every start."""
    shown, drawn, now = [], [], [time.monotonic()]
    monkeypatch.setattr("coatnet.training.recorder.time.monotonic", lambda: now[0])
    monkeypatch.setattr(MetricsLog, "scalars", lambda *_, samples_seen: None)
    monkeypatch.setattr(MetricsLog, "images", lambda *_, samples_seen: shown.append(now[0]))
    monkeypatch.setattr(Recorder, "_draw", lambda *_: drawn.append(now[0]))
    recorder, state = make_recorder(run, total=10**9), State()
    for _ in range(3000):
        now[0] += 1000.0
        recorder.evaluation(state, {"top1": 0.5})
        take_step(recorder, state)
    assert len(drawn) == len(shown) < 200
    gaps = [later - before for before, later in pairwise(drawn)]
    assert gaps[0] == 1000.0 and 1e5 < gaps[-1] < 2e5, "an hour is seen in full, the last week by the day"


def test_pictures_are_drawn_once_a_minute_at_most_and_at_the_end(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the main rank half a second, in which the others wait."""
    drawn: list[tuple[str, int]] = []
    now = [time.monotonic()]
    monkeypatch.setattr(
        MetricsLog, "figure", lambda _, name, picture, *, samples_seen: drawn.append((name, samples_seen))
    )
    monkeypatch.setattr("coatnet.training.recorder.time.monotonic", lambda: now[0])
    recorder = make_recorder(run, total=40)
    for samples_seen, later in ((8, 0.0), (16, 59.0), (24, 2.0), (32, 59.0), (40, 0.0)):
        now[0] += later
        recorder.evaluation(State(samples_seen=samples_seen), {"top1": 0.5})
    assert drawn == [("account", 8), ("account", 24), ("account", 40)]
    assert sum("account/evaluation" in row for row in read_lines(run.metrics)) == 5  # their numbers each time


def test_what_the_account_has_come_to_is_told_every_twenty_records(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr("coatnet.training.recorder.time.monotonic", lambda: now[0])
    recorder, state = make_recorder(run, total=10_000), State()
    told = []
    for later in (9.0, 2.0, 9.0, 2.0):
        now[0] += later
        take_step(recorder, state)
        told.append(sum("account/compute" in row for row in read_lines(run.metrics)))
    recorder.close()
    assert told == [0, 1, 1, 2]


def test_the_chart_of_the_account_keeps_its_ends_and_at_most_120_stretches_between_them(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []

    def figure(history: Sequence[Mapping[str, float]]) -> None:
        drawn.append([sum(spent.values()) for spent in history])

    monkeypatch.setattr("coatnet.training.recorder.account_figure", figure)
    monkeypatch.setattr(MetricsLog, "figure", lambda *_, samples_seen: None)
    recorder = make_recorder(run, total=8)
    for times in (100, 300):
        for _ in range(times):
            recorder.flush(State())
        recorder.evaluation(State(samples_seen=8), {"top1": 0.5})
    few, many = drawn
    assert len(few) == 102 and 60 < len(many) <= 121
    assert few[0] == many[0] == 0 and many == sorted(many) and many[-1] > few[-1]


def test_a_class_in_letters_that_the_font_lacks_or_in_many_is_no_warning_at_each_evaluation(
    recwarn: pytest.WarningsRecorder,
) -> None:
    confusion_figure(torch.eye(2, dtype=torch.int64), ["衬衫", "b" * 200]).savefig(io.BytesIO())
    assert [str(one.message) for one in recwarn] == []


def test_rates_are_of_the_time_in_which_steps_are_taken(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    account = TimeAccount(run.account, rank=0, life=1)
    recorder, state = make_recorder(run, account=account), State()
    clock[0] += 60  # of start
    account.started()
    for waited in (3, 2, 0):
        with account.measure("data_wait"):
            clock[0] += waited
        with account.measure("compute"):
            clock[0] += 2
        take_step(recorder, state)
        with account.measure("evaluation"):
            clock[0] += 30
    recorder.flush(state)
    rows = [row for row in read_lines(run.metrics) if "step_seconds" in row]
    rates = [(row["images_per_second"], row["step_seconds"], row["data_wait_share"]) for row in rows]
    assert rates == [(8 / 5, 5.0, 3 / 5), (2.0, 4.0, 1 / 2), (4.0, 2.0, 0.0)]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 0]


def test_the_use_of_a_devices_peak_is_counted_by_the_images_size_at_that_position(
    run: RunDirectory,
) -> None:
    recorder, state = make_recorder(run, peak=1e12), State()
    for _ in range(3):
        recorder.record_next()
        take_step(recorder, state)
    rows = [row for row in read_lines(run.metrics) if "mfu" in row]
    operations = [row["mfu"] * 1e12 / row["images_per_second"] for row in rows]
    assert operations == pytest.approx([1e9, 1e9, 4e9])
    four = make_recorder(run, peak=1e12, ranks=Ranks(world_size=4))
    assert four._utilisation(100.0, begin=0) == {"mfu": pytest.approx(100 * 1e9 / 4e12)}


def test_a_rank_names_its_own_loss_and_samples_of_a_step_that_was_refused(run: RunDirectory) -> None:
    recorder = make_recorder(run, ranks=Ranks(rank=1, world_size=2))
    take_step(recorder, State(), applied=False)
    (event,) = run.read_events()
    assert (event["rank"], event["loss"], event["positions"]) == (1, "3.0", [*range(8)])


def test_what_one_rank_asks_for_is_asked_for_whatever_else_it_asks_for() -> None:
    asked = replace(result(), wishes=[0, STOP | SAVE])
    assert asked.asks_for(STOP) and asked.asks_for(SAVE) and not asked.asks_for(LEAVE)


def test_a_life_that_goes_back_names_bad_samples_and_skipped_steps_again_and_counts_them_once(
    run: RunDirectory,
) -> None:
    first, state = make_recorder(run, life=1), State()
    take_step(first, state, bad=2)
    saved = replace(state)
    take_step(first, state, bad=1, applied=False)
    first.flush(state)
    second = make_recorder(run, life=2)
    second.remember(read_earlier(run.metrics, after=8), read_lives(run.account))
    take_step(second, saved, bad=1, applied=False)
    rows = [row for row in read_lines(run.metrics) if "bad_samples" in row]
    assert [(row["bad_samples"], row["skipped_steps"]) for row in rows] == [(3, 1)] * 2
    kinds = [event["kind"] for event in read_lines(run.events)]
    assert kinds.count("bad_sample") == 4 and kinds.count("skipped_step") == 2


@pytest.mark.parametrize(
    ("age", "early", "late"), [(100.0, 0.4, 0.6), (50_000.0, 4.0, 6.0), (2_000_000.0, 9.0, 11.0)]
)
def test_a_run_records_more_rarely_as_it_grows_old_and_always_the_step_after_a_save(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, age: float, early: float, late: float
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr("coatnet.training.recorder.time.monotonic", lambda: now[0])
    recorder, state = make_recorder(run, life=1, total=10_000), State()

    def recorded_after(seconds: float) -> bool:
        now[0] += seconds
        take_step(recorder, state)
        rows = [row for row in read_lines(run.metrics) if "train/loss" in row]
        return bool(rows) and rows[-1]["samples_seen"] == state.samples_seen

    assert not recorded_after(0.4) and recorded_after(age)
    assert not recorded_after(early) and recorded_after(late - early)
    recorder.record_next()
    assert recorded_after(0.1) and not recorded_after(0.1)
    recorder.close()


def test_the_account_in_the_metrics_goes_on_where_earlier_lives_ended(run: RunDirectory) -> None:
    first = make_recorder(run, life=1)
    first._account._seconds["compute"] = 100.0
    first.flush(State())
    first._account.close()
    second = make_recorder(run, life=2)
    second.remember(read_earlier(run.metrics, after=0), read_lives(run.account))
    second._account._seconds["compute"] = 10.0
    second.flush(State())
    spent = [row["account/compute"] for row in read_lines(run.metrics)]
    assert spent == pytest.approx([100.0, 110.0], abs=0.01)
    charted = [stretch["compute"] for stretch in second._history]
    assert charted == pytest.approx([0.0, 100.0, 110.0], abs=0.01)


def test_every_stage_is_looked_at_in_the_first_step_and_each_hundredth() -> None:
    config = ModelConfig(depths=[1, 1, 2, 1, 1], widths=[8, 8, 8, 32, 32], image_size=32, num_classes=2)
    model = build_model(config, norm=NormConfig(group_images=2), seed=0)
    statistics = ActivationStatistics(model)
    looked = []
    for step in (7, 8, 100, 101):
        statistics.before_step(step)
        model(torch.randn(2, 3, 32, 32))
        looked.append(statistics.after_step())
    assert [bool(found) for found in looked] == [True, False, True, False]
    assert {name.split("/")[1] for name in looked[0]} == {"S1", "S2", "S3", "S4"}
    assert all(looked[0][f"activations/S{stage}/deviation"] > 0 for stage in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("seconds", "unit"), [(90.0, "seconds"), (7000.0, "minutes"), (9e4, "hours"), (9e5, "days")]
)
def test_the_account_is_drawn_in_a_unit_that_a_person_reads(seconds: float, unit: str) -> None:
    idle = dict.fromkeys(CLASSES, 0.0)
    figure = account_figure([idle, {**idle, "compute": seconds}])
    assert figure.axes[0].get_xlabel() == f"{unit} since the first start"
