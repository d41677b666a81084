"""The fine-tuning loop and what it keeps: progress, evaluations, checkpoints, the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.progress import progress
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.runtime.stop import StopFlag
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.loader import TrainLoader
from data_pipeline.record import SampleSource
from finetune.config import FinetuneConfig
from finetune.evaluation.figures import figures
from finetune.evaluation.measure import measure
from finetune.learner import Learner, StepResult
from finetune.plan import Phase, Plan, is_due

_MAX_SKIPPED_IN_A_ROW = 10
_RECORD_EVERY_SECONDS = 1.0


@dataclass
class State:
    """What a checkpoint keeps beside the tensors.

    Attributes:
        seconds: of all lives together.
        stale: evaluations since the best one.
    """

    samples_seen: int = 0
    seconds: float = 0.0
    best_top1: float = -1.0
    best_step: int = 0
    stale: int = 0
    skipped_in_a_row: int = 0


@dataclass
class Trainer:
    """A run's parts, and the loop over them."""

    config: FinetuneConfig
    ranks: Ranks
    run: RunDirectory
    plan: Plan
    learner: Learner
    store: CheckpointStore
    account: TimeAccount
    metrics: MetricsLog
    corpora: list[SampleSource]
    evaluation_corpus: SampleSource | None
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.state = State()
        self.last_evaluation: dict[str, Any] = {}
        self._recorded = 0.0

    def train(self, stop: StopFlag) -> bool:
        """Train to the end, or until all ranks agree to stop; return True at the end."""
        self._resume()
        began = time.monotonic() - self.state.seconds
        done, total = self.state.samples_seen, self.plan.total
        with progress(total, "fine-tune", "images", done=done, enabled=self.ranks.is_main) as bar:
            for phase, batch in self._batches():
                before = self.state.samples_seen
                self.state.samples_seen = after = before + self.config.train.global_batch
                with self.account.measure("compute"):
                    result = self.learner.step(
                        batch, augment=phase.augment, learning_rate=self.plan.learning_rate(after)
                    )
                self.state.seconds = time.monotonic() - began
                self._record(result, batch, phase=phase)
                bar.advance(after - before)
                bar.note(f"loss {result.loss:.3f}")
                worth_keeping = False
                if is_due(self.plan.evaluate_every, before=before, after=after):
                    worth_keeping = self._evaluate(phase) and self.config.train.patience > 0
                stopping = self.ranks.any(stop.requested)
                finished = after >= total or self._is_stale()
                due = is_due(self.plan.save_every, before=before, after=after)
                if stopping or finished or due or worth_keeping:
                    self._save(wait=stopping or finished)
                if stopping or finished:
                    break
        return self._finish() if self.state.samples_seen >= total or self._is_stale() else False

    def _batches(self) -> Iterator[tuple[Phase, Batch]]:
        """Yield the batches of all phases from the present position on."""
        for phase in self.plan.phases:
            if self.state.samples_seen >= phase.end:
                continue
            stream = self.make_loader(phase.augment).from_sample(self.state.samples_seen)
            try:
                while self.state.samples_seen < phase.end:
                    with self.account.measure("data_wait"):
                        batch = next(stream)
                    yield phase, batch
            finally:
                stream.close()

    def make_loader(self, augment: AugmentConfig) -> TrainLoader:
        """Return the training stream at one resolution; all streams have one order."""
        return TrainLoader(
            self.corpora,
            self.config.data,
            augment,
            seed=self.config.seed,
            global_batch=self.config.train.global_batch,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )

    def _record(self, result: StepResult, batch: Batch, *, phase: Phase) -> None:
        seen = self.state.samples_seen
        for sample in batch.bad:
            self.run.record_event("bad_sample", rank=self.ranks.rank, **sample.to_dict())
        self.state.skipped_in_a_row = 0 if result.applied else self.state.skipped_in_a_row + 1
        if not result.applied and self.ranks.is_main:
            self.run.record_event("skipped_step", samples_seen=seen, gradient_norm=str(result.gradient_norm))
        if self.state.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{self.run.path}: {_MAX_SKIPPED_IN_A_ROW} steps in a row had no finite gradient; "
                "lower optimizer.learning_rate"
            )
        if time.monotonic() - self._recorded >= _RECORD_EVERY_SECONDS or seen >= self.plan.total:
            self._recorded = time.monotonic()
            self.metrics.scalars(
                {
                    "train/loss": result.loss,
                    "train/gradient_norm": result.gradient_norm,
                    "train/learning_rate": result.learning_rate,
                    "train/image_size": phase.augment.image_size,
                    "progress": seen / self.plan.total,
                    "images_per_second": seen / max(self.state.seconds, 1e-9),
                },
                samples_seen=seen,
            )

    def _evaluate(self, phase: Phase) -> bool:
        """Evaluate what will be handed on, and say whether it is the best so far."""
        if self.evaluation_corpus is None:
            return False
        with self.account.measure("evaluation"), self.learner.averaged():
            result = measure(
                self.learner.model,
                self.evaluation_corpus,
                phase.augment,
                batch=self.config.evaluate.batch,
                ranks=self.ranks,
                precision=self.config.precision,
                threads=self.config.data.threads,
                show_progress=False,
            )
        found = figures(result.predictions, classes=len(self.evaluation_corpus.classes))
        self.last_evaluation = {
            **found.to_json(),
            "at": self.state.samples_seen,
            "image_size": phase.augment.image_size,
        }
        is_best = found.top1 > self.state.best_top1
        if is_best:
            step = self.state.samples_seen // self.config.train.global_batch
            self.state.best_top1, self.state.best_step = found.top1, step
            self.state.stale = 0
        else:
            self.state.stale += 1
        self.metrics.scalars(
            {
                "evaluate/top1": found.top1,
                "evaluate/top5": found.top5,
                "evaluate/loss": found.loss,
                "evaluate/ece": found.ece,
            },
            samples_seen=self.state.samples_seen,
        )
        return is_best

    def _is_stale(self) -> bool:
        return 0 < self.config.train.patience <= self.state.stale

    def _save(self, *, wait: bool) -> None:
        self.store.raise_errors()
        with self.account.measure("checkpoint"):
            self.store.save(
                step=self.state.samples_seen // self.config.train.global_batch,
                samples_seen=self.state.samples_seen,
                fragments=self.learner.fragments(),
                facts={
                    **self.facts,
                    "updates": self.learner.updates,
                    "data": self.make_loader(self.config.augment).state(),
                    "progress": asdict(self.state),
                    "evaluation": self.last_evaluation,
                    "figures": {"top1": self.last_evaluation.get("top1")},
                },
                wait=wait,
            )
        self.account.flush(samples_seen=self.state.samples_seen)

    def _resume(self) -> None:
        checkpoint = self.store.newest()
        if checkpoint is not None:
            self.learner.restore(checkpoint)
            self.make_loader(self.config.augment).restore(checkpoint.facts["data"])
            self.state = State(**checkpoint.facts["progress"])
            self.last_evaluation = checkpoint.facts["evaluation"]
        if self.ranks.is_main:
            kind = "start" if checkpoint is None else "resume"
            self.run.record_event(
                kind, samples_seen=self.state.samples_seen, world_size=self.ranks.world_size
            )
        self.account.started()

    def _finish(self) -> bool:
        if self.last_evaluation.get("at") != self.state.samples_seen:
            self._evaluate(self.plan.phases[-1])
        if self.ranks.is_main:
            evaluated = self.last_evaluation
            summary = {
                "top1": evaluated.get("top1"),
                "top5": evaluated.get("top5"),
                "samples": self.state.samples_seen,
                "seconds": round(self.state.seconds, 2),
                "best_top1": self.state.best_top1 if evaluated else None,
                "best_step": self.state.best_step,
                "steps": self.learner.updates,
                "evaluation": evaluated,
                "config_digest": self.facts["config_digest"],
            }
            write_atomically(self.run.summary, json.dumps(summary, indent=2) + "\n")
            self.run.mark("done", samples_seen=self.state.samples_seen)
        return True
