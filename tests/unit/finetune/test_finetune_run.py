"""A fine-tuning run's step and its evaluation, against the same ones by hand."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from coatnet.checkpoint.reader import Checkpoint
from coatnet.model.config import ModelConfig
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag
from coatnet.training.sections import EvaluateConfig, LossConfig, SaveConfig, ScheduleConfig
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.class_weights import loss_weights
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.device import normalise
from data_pipeline.open_corpus import open_corpus
from finetune.config import FinetuneConfig, FinetuneTrainConfig
from finetune.evaluation.judging import judge
from finetune.evaluation.measure import measure
from finetune.run import FinetuneRun, State

pytestmark = pytest.mark.slow  # by the import of accelerate
Start = Callable[..., FinetuneRun]


@pytest.fixture
def start(tiny: ModelConfig, photos: Path, tmp_path: Path) -> Iterator[Start]:
    """Return what begins a run of steps of eight images."""
    begun: list[FinetuneRun] = []

    def make(
        *, micro_batch: int | None = 4, evaluate: str | None = str(photos), **changes: Any
    ) -> FinetuneRun:
        config = FinetuneConfig(
            model=tiny,
            data=DataConfig(train=[CorpusConfig(str(photos))], evaluate=evaluate, threads=1),
            augment=AugmentConfig(64, evaluate_resize="whole"),
            evaluate=EvaluateConfig(every="1 steps", batch=5),
            schedule=ScheduleConfig("constant", "2 steps"),
            train=FinetuneTrainConfig(
                "4 steps", global_batch=8, micro_batch=micro_batch, patience=int(evaluate is not None)
            ),
            ema=0.1,
            **changes,
        )
        run = RunDirectory(tmp_path / "run")
        run.create("seed: 0\n", digest="aa")
        begun.append(FinetuneRun(config, run=run, lease=None, digest="aa", ranks=Ranks(), stop=StopFlag()))
        return begun[-1]

    yield make
    for each in begun:
        each.close(None)
        each.watchdog.stop()


def first_batch(run: FinetuneRun) -> Batch:
    with closing(run.stream.follow(State())) as batches:
        return next(batches)


@pytest.mark.parametrize("micro_batch", [4, None])
def test_a_step_is_of_the_weighted_and_smoothed_loss_of_all_images_at_the_rate_that_it_reaches(
    start: Start, photos: Path, micro_batch: int | None
) -> None:
    run = start(loss=LossConfig(smoothing=0.2, class_weights="balanced"), micro_batch=micro_batch)
    batch, alone, augment = first_batch(run), copy.deepcopy(run.engine.model).train(), AugmentConfig(64)
    weights = loss_weights([open_corpus(photos)], "balanced", ranks=Ranks())
    expected = 0.0
    for rows in (slice(0, 4), slice(4, 8)) if micro_batch else (slice(0, 8),):
        images = normalise(batch.images[rows], mean=augment.mean, std=augment.std)
        labels = batch.labels[rows]
        each = cross_entropy(
            alone(images, sample_keys=batch.keys[rows]), labels, label_smoothing=0.2, reduction="none"
        )
        expected += float((each * torch.tensor(weights)[labels]).detach().sum()) / 8
    result = run.take(State(), batch, wish=3)
    assert result.losses == [pytest.approx(expected, rel=1e-5)] and result.applied
    assert (result.samples, result.wishes, result.bad) == (8, [3], 0)
    assert result.learning_rate == pytest.approx(5e-5 / 2)

    before = copy.deepcopy(run.engine.model.state_dict())
    refused = run.take(State(samples_seen=8), batch, wish=0, refused=True)
    assert not refused.applied and math.isnan(refused.losses[0])
    assert all(torch.equal(one, before[name]) for name, one in run.engine.model.state_dict().items())


def test_the_average_is_judged_and_patience_counts_what_is_no_better(start: Start) -> None:
    run, state = start(loss=LossConfig("sigmoid")), State(samples_seen=8, step=1, image_size=64)
    for _ in range(3):
        run.take(State(), first_batch(run), wish=0)
    assert json.loads(run.run.corpora.read_text()) == run.config.data.digests_here()
    corpus = run.evaluation_corpus
    assert corpus is not None
    with run.engine.state.averaged_weights():
        augment = AugmentConfig(64, evaluate_resize="whole")
        measured = measure(run.engine.model, corpus, augment, batch=5, ranks=Ranks(), loss="sigmoid")
    expected = judge(measured.predictions, classes=3)
    run.measure(state)
    assert state.evaluation == {**expected, "at": 8, "image_size": 64}
    assert state.figures == {name: state.evaluation[name] for name in ("top1", "top5", "loss", "ece")}
    assert (state.best, state.best_step, state.stale) == (expected["top1"], 1, 0)
    state.step = 2
    assert not run.is_finished(state)
    run.measure(state)
    assert (state.best_step, state.stale) == (1, 1) and run.is_finished(state)


def test_a_step_that_is_done_again_counts_as_that_with_all_that_its_ranks_tell_each_other(
    start: Start,
) -> None:
    run = start()
    batch, run._redone_until = first_batch(run), 8
    run.take(State(), batch, wish=0)
    spent = run.account.seconds()
    assert spent["communication"] == spent["compute"] == 0.0 < spent["redone"]
    run.take(State(samples_seen=8), batch, wish=0)
    again = run.account.seconds()
    assert min(again["communication"], again["compute"]) > 0.0 and again["redone"] == spent["redone"]


def test_an_image_that_an_evaluation_cannot_read_is_named(start: Start, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "amber" / "00.jpg").write_bytes(b"torn")
    run = start(evaluate=str(folder))
    run.measure(State(samples_seen=8, step=1, image_size=64))
    (event,) = [event for event in run.run.read_events() if event["kind"] == "bad_sample"]
    assert event["name"] == "amber/00.jpg" and event["during"] == "evaluation"


def test_patience_keeps_the_best_by_what_it_goes_by_and_checkpoints_tell_where_a_model_comes_from(
    start: Start,
) -> None:
    run = start(save=SaveConfig("1 steps", last=1), freeze=["S0"])
    for step, top1 in enumerate((0.9, 0.5, 0.4, 0.3), start=1):
        state = State(samples_seen=8 * step, step=step, image_size=64)
        state.figures, state.evaluation = {"top1": top1, "top5": 1 - top1}, {"top1": top1}
        run.save(state, wait=True)
    kept = {folder.name for folder in run.run.find_checkpoints()}
    assert kept == {f"step-0000000{step}" for step in (1, 3, 4)}
    facts = Checkpoint(run.run.checkpoints / "step-00000001").facts
    assert (facts["kind"], facts["loss"], facts["classes"]) == (
        "finetune",
        "softmax",
        ["amber", "blue", "green"],
    )
    assert (facts["origin"], facts["config_digest"], facts["evaluation"]) == (
        {"init": None},
        "aa",
        {"top1": 0.9},
    )
    assert facts["augment"]["image_size"] == 64


def test_a_run_without_evaluations_has_a_summary_and_that_leaves_out_the_time_of_starting(
    start: Start,
) -> None:
    run, state = start(evaluate=None), State(samples_seen=8, step=3, applied_steps=2)
    assert json.loads(run.run.corpora.read_text()) == run.config.data.digests_here()
    run.measure(state)
    assert not run.is_finished(state) and run.is_finished(State(samples_seen=32))
    account = TimeAccount(run.run.account, rank=0, life=9, age_seconds=100.0)
    account.shift(40.0, source="start", target="compute")
    account.flush(samples_seen=8)
    summary = run.summary(state)
    assert 40.0 <= summary["seconds"] < 60.0
    assert (summary["steps"], summary["samples"], summary["best_step"]) == (2, 8, 0)
    assert summary["best_top1"] is summary["top1"] is None and not summary["evaluation"]
