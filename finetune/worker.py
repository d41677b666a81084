"""What every rank of a fine-tuning run executes: `python -m finetune.worker CONFIG key=value…`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from coatnet.checkpoint.store import CheckpointStore, Retention
from coatnet.config import UserError, config_digest, load_config, to_dict, to_yaml
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lease import Lease
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.opening import open_run, run_rank
from coatnet.runtime.ranks import Ranks, already_launched
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag
from data_pipeline.decode import backend_name
from data_pipeline.open_corpus import open_corpus, open_train_corpora
from data_pipeline.record import SampleSource
from finetune.config import FinetuneConfig
from finetune.learner import Learner
from finetune.plan import Plan
from finetune.start import starting_model
from finetune.trainer import Trainer

# Sections that change where and how, but not what comes out: they may change under a run.
NOT_THE_RESULT = (
    "launch",
    "run",
    "save",
    "seeds",
)


def main(arguments: Sequence[str]) -> None:
    """Join the ranks and train."""
    config = load_config(FinetuneConfig, arguments[0] or None, overrides=arguments[1:])
    ranks = Ranks.start() if already_launched() else Ranks.single()
    try:
        train(config, ranks=ranks)
    finally:
        ranks.stop()


def train(config: FinetuneConfig, *, ranks: Ranks) -> bool:
    """Run or resume the run of a config; return True when it reached its end.

    Raises:
        UserError: another job holds the directory, it belongs to another config, or data do not fit.
    """
    run = RunDirectory(config.run.directory)
    digest = config_digest(config, without=NOT_THE_RESULT)
    lease = open_run(run, ranks=ranks, config_yaml=to_yaml(config), digest=digest, decoder=backend_name())
    try:
        with StopFlag() as stop:
            trainer = make_trainer(config, ranks=ranks, run=run, lease=lease, digest=digest)
            try:
                return trainer.train(stop)
            finally:
                trainer.account.flush(samples_seen=trainer.state.samples_seen)
                trainer.metrics.close()
                trainer.store.close()
    finally:
        if lease is not None:
            lease.release()


def make_trainer(
    config: FinetuneConfig, *, ranks: Ranks, run: RunDirectory, lease: Lease | None, digest: str
) -> Trainer:
    """Put a run's parts together."""
    account = TimeAccount(run.account, rank=ranks.rank, life=ranks.broadcast(uuid.uuid4().hex[:8]))
    corpora = open_train_corpora(config.data)
    evaluation = open_corpus(config.data.evaluate, cache=config.data.cache) if config.data.evaluate else None
    classes = corpora[0].classes
    if evaluation is not None and evaluation.classes != classes:
        raise UserError(f"data.evaluate: {config.data.evaluate} has other classes than data.train[0]")
    plan = Plan.make(config, epoch_samples=sum(corpus.samples for corpus in corpora))
    model, model_config, origin = starting_model(config, classes=classes)
    trainer_facts: dict[str, Any] = {
        "kind": "finetune",
        "model": to_dict(model_config),
        "classes": classes,
        "augment": to_dict(plan.phases[-1].augment),
        "config_digest": digest,
        "origin": origin,
    }
    learner = Learner(
        model,
        config,
        ranks=ranks,
        num_classes=len(classes),
        class_weights=balanced_weights(corpora) if config.loss.class_weights == "balanced" else None,
    )
    best = "top1" if config.train.patience else None
    retention = Retention(last=config.save.last, best=best)
    store = CheckpointStore(run.checkpoints, ranks=ranks, lease=lease, retention=retention)
    metrics = MetricsLog(run, enabled=ranks.is_main)
    return Trainer(
        config, ranks, run, plan, learner, store, account, metrics, corpora, evaluation, trainer_facts
    )


def balanced_weights(corpora: Sequence[SampleSource]) -> list[float]:
    """Return samples / (classes · samples of the class), by class: a rare class counts as much as another."""
    counts = [0] * len(corpora[0].classes)
    for corpus in corpora:
        if corpus.label_kind != "single":
            raise UserError("loss.class_weights is 'balanced', but a corpus has several labels per image")
        for shard, samples in enumerate(corpus.counts):
            for index in range(int(samples)):
                counts[corpus.read(shard, index).label] += 1
    total = sum(counts)
    return [total / (len(counts) * max(count, 1)) for count in counts]


if __name__ == "__main__":
    run_rank(main)
