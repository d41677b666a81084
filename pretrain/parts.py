"""A run's parts, put together, and what they do together. Knows no command line."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError, to_dict
from coatnet.model.network import build_model
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lease import Lease
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, read_lines, write_atomically
from data_pipeline.open_corpus import open_corpus, open_train_corpora
from data_pipeline.record import SampleSource
from pretrain.calendar import Calendar
from pretrain.checkpoints import Checkpoints
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Engine
from pretrain.evaluation import Evaluator
from pretrain.guard import Guard, Verdict
from pretrain.recorder import Recorder
from pretrain.state import State, digest_of_range
from pretrain.stream import Stream
from pretrain.trainer import StepResult, Trainer


class Parts:
    """Everything that the loop calls."""

    def __init__(
        self, config: PretrainConfig, *, ranks: Ranks, run: RunDirectory, lease: Lease | None, digest: str
    ) -> None:
        """Open the corpora, build the model and its engine.

        Raises:
            UserError: corpora, batches or model do not fit together.
        """
        self.config, self.ranks, self.run = config, ranks, run
        self.account = TimeAccount(run.account, rank=ranks.rank, life=ranks.broadcast(uuid.uuid4().hex[:8]))
        corpora = open_train_corpora(config.data)
        classes = corpora[0].classes
        model_config = replace(config.model, num_classes=len(classes), image_size=config.augment.image_size)
        group_images = _group_images(config, world_size=ranks.world_size)
        model = build_model(
            model_config, norm=replace(config.norm, group_images=group_images), seed=config.seed
        )
        model.set_activation_checkpointing(config.train.activation_checkpointing)
        if config.compile:
            model.compile_blocks()
        self.engine = Engine(
            model,
            ranks=ranks,
            zero=config.zero,
            optimizer=config.optimizer,
            precision=config.precision,
            ema_decay=config.ema or None,
        )
        self.calendar = Calendar.make(config, epoch_samples=sum(corpus.samples for corpus in corpora))
        self.stream = Stream(corpora, config, ranks=ranks, calendar=self.calendar, account=self.account)
        self.trainer = Trainer(
            self.engine, config, num_classes=len(classes), group_images=group_images, account=self.account
        )
        self.metrics = MetricsLog(run, enabled=ranks.is_main)
        self.recorder = Recorder(
            run, ranks=ranks, account=self.account, metrics=self.metrics, total=self.calendar.total
        )
        self.evaluator = _evaluator(config, classes=classes, ranks=ranks)
        self.checkpoints = Checkpoints(
            CheckpointStore(
                run.checkpoints,
                ranks=ranks,
                lease=lease,
                retention=Retention(config.save.last, config.save.keep_every_steps, config.save.best),
                alarm=lambda text: self.recorder.event("alarm", text=text),
            ),
            engine=self.engine,
            stream=self.stream,
            ranks=ranks,
            account=self.account,
            facts={
                "kind": "pretrain",
                "model": to_dict(model_config),
                "classes": classes,
                "augment": to_dict(config.augment),
                "norm": to_dict(config.norm),
                "group_images": group_images,
                "config_digest": digest,
            },
            every_seconds=self.calendar.save_seconds,
        )
        self._exclusions = run.path / "exclusions.json"
        rollbacks = self._read_exclusions()
        self.guard = Guard(config.guard, rollbacks=rollbacks)
        self._redone_until = 0

    def resume(self) -> State:
        """Return the state to go on from, with the engine in it."""
        self.trainer.rehearse(
            image_size=self.config.augment.image_size, samples=self.trainer.micro_batch or self._share()
        )
        state = self.checkpoints.resume()
        if self.ranks.is_main:
            rows = read_lines(self.run.metrics)
            self._redone_until = max((row.get("samples_seen", 0) for row in rows), default=0)
        self._redone_until = self.ranks.broadcast(self._redone_until)
        kind = "start" if state is None else "resume"
        state = state or State()
        self.recorder.event(
            kind,
            samples_seen=state.samples_seen,
            step=state.step,
            world_size=self.ranks.world_size,
            stage=self.config.zero.stage,
        )
        self.account.started()
        return state

    def label(self, samples_seen: int) -> str:
        """Name the account's class for a step: work that an earlier life did already counts as redone."""
        return "redone" if samples_seen < self._redone_until else "compute"

    def evaluate(self, state: State) -> None:
        """Measure the evaluation corpus, if there is one."""
        if self.evaluator is None:
            return
        with self.account.measure("evaluation"):
            state.figures = self.evaluator.measure(self.engine)
        self.recorder.evaluation(state, state.figures)

    def look_after(self, state: State, result: StepResult) -> None:
        """Do what is done at every step without touching its result."""
        self.checkpoints.raise_errors()

    def roll_back(self, state: State, verdict: Verdict) -> None:
        """Go back to before a spike and leave its samples out from now on."""
        self.stream.exclude(verdict.samples)
        if self.ranks.is_main:
            known = _read_ranges(self._exclusions)
            ranges = [*known, [verdict.samples.start, verdict.samples.stop]]
            write_atomically(self._exclusions, json.dumps({"ranges": ranges}) + "\n")
        state.become(self.checkpoints.restore(before=verdict.step))

    def finish(self, state: State) -> None:
        """Write the summary of a run that reached its end."""
        summary = {
            **state.figures,
            "samples": state.samples_seen,
            "steps": state.step,
            "applied_steps": state.applied_steps,
            "every_sample_once": state.trained_digest == digest_of_range(state.samples_seen),
        }
        write_atomically(self.run.summary, json.dumps(summary, indent=2) + "\n")

    def close(self, state: State | None) -> None:
        """Finish what is under way."""
        self.checkpoints.close()
        if state is not None:
            self.recorder.flush(state)
        self.metrics.close()

    def _share(self) -> int:
        return self.config.train.global_batch // self.ranks.world_size

    def _read_exclusions(self) -> int:
        ranges = self.ranks.broadcast(_read_ranges(self._exclusions) if self.ranks.is_main else None)
        for begin, end in ranges:
            self.stream.exclude(range(begin, end))
        return len(ranges)


def _read_ranges(path: Path) -> list[list[int]]:
    return json.loads(path.read_text())["ranges"] if path.exists() else []


def _group_images(config: PretrainConfig, *, world_size: int) -> int:
    """Return the images that batch norm looks at together, a divisor of every micro-batch.

    Raises:
        UserError: batches that cannot be cut evenly.
    """
    batches = [config.train.global_batch, *(change.global_batch for change in config.train.batch_changes)]
    micro = config.train.micro_batch
    for batch in batches:
        if batch % world_size:
            raise UserError(
                f"train.global_batch is {batch}; allowed with {world_size} ranks: multiples of {world_size}"
            )
        if micro is not None and (batch // world_size) % micro:
            raise UserError(
                f"train.micro_batch is {micro}; allowed: divisors of {batch // world_size}, each rank's "
                f"share of train.global_batch={batch}"
            )
    smallest = min(batches) // world_size
    group = config.norm.group_images or micro or smallest
    if (micro or smallest) % group:
        raise UserError(
            f"norm.group_images is {group}; allowed: divisors of the micro-batch, {micro or smallest}"
        )
    return group


def _evaluator(config: PretrainConfig, *, classes: list[str], ranks: Ranks) -> Evaluator | None:
    if config.data.evaluate is None:
        return None
    corpus: SampleSource = open_corpus(config.data.evaluate, cache=config.data.cache)
    if corpus.classes != classes:
        raise UserError(f"data.evaluate: {config.data.evaluate} has other classes than data.train[0]")
    return Evaluator(corpus, config, ranks=ranks)
