"""The fine-tuning loop: steps, evaluations, the best one, the summary."""

from __future__ import annotations

import json
import operator
import time
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.config import UserError
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.progress import progress
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, read_lines, write_atomically
from coatnet.runtime.stop import StopFlag
from coatnet.training.calendar import Calendar
from coatnet.training.checkpoints import Checkpoints
from coatnet.training.losses import make_loss
from coatnet.training.recorder import Recorder, StepResult
from coatnet.training.state import RunState
from data_pipeline.batch import Batch
from data_pipeline.device import DeviceTransform
from data_pipeline.record import SampleSource
from data_pipeline.stream import Stream
from finetune.config import FinetuneConfig
from finetune.engine import Engine
from finetune.evaluation.during import measure_figures

_MAX_SKIPPED_IN_A_ROW = 10
_PICTURES = 16
_STOP, _SAVE = 1, 2  # what a rank may ask of all at the end of a step


@dataclass
class State(RunState):
    """What a checkpoint keeps beside the tensors.

    Attributes:
        seconds: of all lives together.
        stale: evaluations since the best one.
        evaluation: the last one.
    """

    seconds: float = 0.0
    best_top1: float = -1.0
    best_step: int = 0
    stale: int = 0
    evaluation: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trainer:
    """A run's parts, and the loop over them."""

    config: FinetuneConfig
    ranks: Ranks
    run: RunDirectory
    calendar: Calendar
    stream: Stream
    engine: Engine
    checkpoints: Checkpoints[State]
    account: TimeAccount
    recorder: Recorder
    evaluation_corpus: SampleSource | None
    classes: list[str]
    class_weights: Tensor | None

    def __post_init__(self) -> None:
        loss = self.config.loss
        self._losses = make_loss(loss.name, loss.smoothing, per_sample=True)
        self._transform = DeviceTransform(self.config.augment, training=True)

    def train(self, stop: StopFlag) -> None:
        """Train to the end, or until a rank was told to stop; leave the summary and a marker."""
        resumed = self.checkpoints.resume()
        state = resumed or State()
        self.engine.applied_steps = state.applied_steps
        kind = "start" if resumed is None else "resume"
        if self.ranks.is_main:
            self.recorder.remember(list(read_lines(self.run.metrics)))
        self.recorder.event(kind, samples_seen=state.samples_seen, world_size=self.ranks.world_size)
        self.account.started()
        began, total = time.monotonic() - state.seconds, self.calendar.total
        done, shown = state.samples_seen, self.ranks.is_main
        with progress(total, "fine-tune", "images", done=done, enabled=shown) as bar:
            for batch in self.stream.follow(state) if not self._is_finished(state) else ():
                before = state.samples_seen
                wish = _STOP * stop.requested + _SAVE * self.checkpoints.time_is_up
                result, wishes = self._step(batch, before=before, wish=wish)
                state.count(samples=result.samples, applied=result.applied)
                state.seconds, state.figures = time.monotonic() - began, {}
                event = None if result.applied else "skipped_step"
                self.recorder.step(state, batch, result, bar, event=event)
                if state.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
                    raise UserError(
                        f"{self.run.path}: {_MAX_SKIPPED_IN_A_ROW} steps in a row had no finite gradient; "
                        "lower optimizer.learning_rate"
                    )
                is_best = False
                if self.calendar.evaluation_due(before=before, after=state.samples_seen):
                    is_best = self._evaluate(state, image_size=self.calendar.phase_at(before).image_size)
                ending = bool(wishes & _STOP) or self._is_finished(state)
                due = self.calendar.save_due(before=before, after=state.samples_seen) or wishes & _SAVE
                if ending or due or (is_best and self.config.train.patience):
                    self.checkpoints.save(state, wait=ending, evaluation=state.evaluation)
                self.checkpoints.raise_errors()
                if ending:
                    break
        if self._is_finished(state):
            self.checkpoints.require(state)
        self.recorder.flush(state)
        if self.ranks.is_main:
            self._finish(state, reason=stop.reason)

    def _is_finished(self, state: State) -> bool:
        """True at the end of the calendar, or when patience is."""
        return state.samples_seen >= self.calendar.total or 0 < self.config.train.patience <= state.stale

    def _finish(self, state: State, *, reason: str | None) -> None:
        if not self._is_finished(state):
            self.run.mark("stopped", samples_seen=state.samples_seen, reason=reason)
            seen = f"{state.samples_seen:,}"
            self.recorder.say(f"stopped and saved after {seen} images; the same command goes on from there")
            return
        summary = {
            **{key: state.evaluation.get(key) for key in ("top1", "top5")},
            "samples": state.samples_seen,
            "seconds": round(state.seconds, 2),
            "best_top1": state.best_top1 if state.evaluation else None,
            "best_step": state.best_step,
            "steps": state.applied_steps,
            "evaluation": state.evaluation,
        }
        write_atomically(self.run.summary, json.dumps(summary, indent=2) + "\n")
        self.run.mark("done", samples_seen=state.samples_seen)

    def _step(self, batch: Batch, *, before: int, wish: int) -> tuple[StepResult, int]:
        """Train on this rank's share and hear what the ranks wish."""
        samples, micro = batch.step_samples(self.ranks.world_size), self.config.train.micro_batch
        rate = self.calendar.learning_rate(before + samples)
        starts = range(0, len(batch), micro)
        parts = [partial(self._loss, batch=batch, rows=slice(start, start + micro)) for start in starts]
        with self.account.measure("compute"):
            loss, norm, applied = self.engine.step(parts, learning_rate=rate)
            own = torch.tensor([float(loss), wish, len(batch.bad)], device=self.ranks.device)
        with self.account.measure("communication"):
            losses, wishes, bad = self.ranks.table(own).T.tolist()
        result = StepResult(
            samples=samples,
            losses=losses,
            gradient_norm=norm,
            learning_rate=rate,
            applied=applied,
            bad=int(sum(bad)),
        )
        return result, reduce(operator.or_, map(int, wishes))

    def augmented(self, batch: Batch) -> Tensor:
        """Return pictures of what the model sees of a first micro-batch. Shape: float (n, H, W, 3)."""
        pixels, _ = self._transformed(batch, slice(0, self.config.train.micro_batch))
        return self._transform.as_pictures(pixels[:_PICTURES]).cpu()

    def _loss(self, model: nn.Module, *, batch: Batch, rows: slice) -> Tensor:
        """Return a micro-batch's part of the mean loss over this rank's images."""
        images, targets = self._transformed(batch, rows)
        logits = model(images, sample_keys=batch.keys[rows].to(images.device))
        weights_of_tail = None if batch.tail is None else batch.tail.weights[rows].to(images.device)
        losses = self._losses(logits, targets, weights_of_tail)
        if (weights := self.class_weights) is not None:
            losses = losses * (targets.float() @ weights if targets.ndim == 2 else weights[targets])
        return losses.sum() / len(batch)

    def _transformed(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        classes, group = len(self.classes), self.config.train.micro_batch
        device = self.ranks.device
        return self._transform.of_batch(batch, rows, device=device, num_classes=classes, group_images=group)

    def _evaluate(self, state: State, *, image_size: int) -> bool:
        """Evaluate what will be handed on, and say whether it is the best so far."""
        if self.evaluation_corpus is None:
            return False
        augment = replace(self.config.augment, image_size=image_size)
        with self.account.measure("evaluation"), self.engine.state.averaged_weights():
            found = measure_figures(
                self.engine.model,
                self.evaluation_corpus,
                augment,
                batch=self.config.evaluate.batch,
                ranks=self.ranks,
                precision=self.config.precision,
                threads=self.config.data.threads,
            )
        state.evaluation = {**found.to_json(), "at": state.samples_seen, "image_size": image_size}
        state.figures = {"top1": found.top1, "top5": found.top5, "loss": found.loss, "ece": found.ece}
        self.recorder.evaluation(state, {**state.figures, "image_size": image_size})
        is_best = found.top1 > state.best_top1
        state.stale = 0 if is_best else state.stale + 1
        if is_best:
            state.best_top1, state.best_step = found.top1, state.step
        return is_best
