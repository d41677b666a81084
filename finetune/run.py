"""A fine-tuning run: its parts, its steps, its evaluations and the best of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.config import to_dict
from coatnet.runtime.lease import Lease
from coatnet.runtime.lives import read_lives
from coatnet.runtime.run_directory import RunDirectory
from coatnet.training.calendar import Calendar
from coatnet.training.distrust import require_one_verdict
from coatnet.training.losses import make_loss
from coatnet.training.recorder import StepResult
from coatnet.training.run import TrainingRun
from coatnet.training.state import RunState
from data_pipeline.batch import Batch
from data_pipeline.class_weights import loss_weights
from data_pipeline.device import TrainTransform
from data_pipeline.first_look import check_best
from data_pipeline.open_corpus import open_evaluation_corpus, open_train_corpora, settle_corpora
from data_pipeline.stream import Stream
from finetune.config import FinetuneConfig
from finetune.engine import Engine
from finetune.evaluation.judging import judge, shares_of
from finetune.evaluation.measure import measure
from finetune.start import starting_model


@dataclass
class State(RunState):
    """What a checkpoint keeps beside the tensors.

    Attributes:
        best, stale: the figure of the best evaluation, and how many have come since at the last resolution.
        evaluation: the last one.
    """

    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    evaluation: dict[str, Any] = field(default_factory=dict)


class FinetuneRun(TrainingRun[State, StepResult]):
    """A fine-tuning run."""

    kind = "finetune"
    state_type = State

    def __init__(
        self, config: FinetuneConfig, *, run: RunDirectory, lease: Lease | None, digest: str, **parts: Any
    ) -> None:
        """Open the corpora, build the model and its engine.

        Raises:
            UserError: the data, the checkpoint and the config do not fit together.
        """
        super().__init__(run, **parts)
        self.config, self.zero_stage, ranks = config, config.zero, self.ranks
        self._micro_batch = config.train.micro_batch or config.train.global_batch // ranks.world_size
        corpora = open_train_corpora(config.data)
        classes = corpora[0].classes
        self.evaluation_corpus = open_evaluation_corpus(config.data, classes=classes)
        check_best(config, self.evaluation_corpus)
        evaluated = [] if self.evaluation_corpus is None else [self.evaluation_corpus]
        settle_corpora({"data.train": corpora, "data.evaluate": evaluated}, run=run, ranks=ranks)
        self._shares = shares_of(self.evaluation_corpus)
        self.calendar = Calendar.make(config, epoch_samples=sum(corpus.samples for corpus in corpora))
        model, origin = starting_model(config, classes=classes)
        self.engine = Engine(model, config, ranks=ranks)
        self.stream = Stream(corpora, config, phases=self.calendar.phases, ranks=ranks, account=self.account)
        self._transform = TrainTransform(
            config.augment, device=ranks.device, num_classes=len(classes), group_images=self._micro_batch
        )
        loss, weights = config.loss, loss_weights(corpora, config.loss.class_weights, ranks=ranks)
        self._losses = make_loss(loss.name, loss.smoothing, class_weights=weights, per_sample=True)
        self.equip(
            tensors=self.engine.state,
            save=replace(config.save, best=self._shares[0]) if config.train.patience else config.save,
            lease=lease,
            model=model.config,
            precision=config.precision,
            augmented=self._transform.pictures,
            begins_with=origin.pop("said"),
            frozen=config.freeze,
            classes=classes,
            loss=loss.name,
            config_digest=digest,
            origin=origin,
        )

    def take(self, state: State, batch: Batch, *, wish: int, refused: bool = False) -> StepResult:
        """Train on this rank's share of a step; with `refused` so that no gradient is finite."""
        samples = batch.step_samples(self.ranks.world_size)
        rate = self.calendar.learning_rate(state.samples_seen + samples)
        begins = range(0, len(batch), self._micro_batch)
        parts = [partial(self._loss, batch=batch, begin=begin, refused=refused) for begin in begins]
        with self.account.measure(self.label(state.samples_seen)):
            loss, norm = self.engine.step(parts, learning_rate=rate)
            own, applied = [float(loss), norm, wish, len(batch.bad)], math.isfinite(norm)
            with self.account.measure("communication", inside="compute"):
                told = self.ranks.table(torch.tensor(own, device=self.ranks.device))
                losses, norms, wishes, bad = told.T.tolist()
            require_one_verdict(norms, samples_seen=state.samples_seen, ranks=self.ranks)
            self.engine.state.settle_statistics(applied=applied, from_scratch=self.config.init is None)
            if applied:
                self.engine.state.update_ema()
        return StepResult(
            samples=samples,
            losses=losses,
            gradient_norm=norm,
            learning_rate=rate,
            applied=applied,
            wishes=[int(each) for each in wishes],
            bad=int(sum(bad)),
        )

    def measure(self, state: State) -> None:
        """Evaluate what will be handed on, and remember the best."""
        if self.evaluation_corpus is None:
            return
        size = state.image_size
        with self.patience("evaluation"), self.engine.state.averaged_weights():
            measured = measure(
                self.engine.model,
                self.evaluation_corpus,
                replace(self.config.augment, image_size=size),
                batch=self.config.evaluate.batch,
                ranks=self.ranks,
                loss=self.config.loss.name,
                precision=self.config.precision,
                threads=self.config.data.threads,
                decoder=self.config.data.decoder,
                way_out=self.way_out,
            )
            found = judge(measured.predictions, classes=len(self.evaluation_corpus.classes))
        state.evaluation = {**found, "at": state.samples_seen, "image_size": size}
        state.figures = {name: found[name] for name in (*self._shares, "loss", "ece")}
        self.recorder.evaluation(state, {**state.figures, "image_size": size}, bad=measured.bad)
        state.stale += size == self.calendar.phases[-1].image_size  # others are there to be left
        if (reached := state.figures[self._shares[0]]) > state.best:
            state.best, state.best_step, state.stale = reached, state.step, 0

    def save(self, state: State, *, wait: bool, **facts: Any) -> None:
        """Save with the last evaluation and the size of images, which go on into what is exported."""
        augment = to_dict(self.config.augment) | {"image_size": state.image_size}
        super().save(state, wait=wait, evaluation=state.evaluation, augment=augment, **facts)

    def is_finished(self, state: State) -> bool:
        """True at the end of the calendar, or when patience is."""
        return super().is_finished(state) or 0 < self.config.train.patience <= state.stale

    def summary(self, state: State) -> dict[str, Any]:
        """Return what summary.json says of a run that reached its end."""
        lives = [life.seconds for life in read_lives(self.run.account)]
        return {
            **{key: state.evaluation.get(key) for key in self._shares},
            "samples": state.samples_seen,
            "seconds": round(sum(sum(each.values()) - each["start"] for each in lives), 2),
            f"best_{self._shares[0]}": state.best if state.evaluation else None,
            "best_step": state.best_step,
            "steps": state.applied_steps,
            "evaluation": state.evaluation,
        }

    def _loss(self, model: nn.Module, *, batch: Batch, begin: int, refused: bool) -> Tensor:
        """Return a micro-batch's part of the mean loss over this rank's images; no number if refused."""
        rows = slice(begin, begin + self._micro_batch)
        images, targets, keys, weights = self._transform(batch, rows)
        loss = self._losses(model(images, sample_keys=keys), targets, weights).sum() / len(batch)
        return loss * math.nan if refused else loss
