"""What every rank of a fine-tuning run executes: `python -m finetune.worker CONFIG key=value…`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch

from coatnet.config import config_digest, load_config, to_dict, to_yaml
from coatnet.model import rows
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lease import Lease
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.opening import opened_run, run_rank
from coatnet.runtime.ranks import Ranks, already_launched
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag
from coatnet.training.checkpoints import Checkpoints
from coatnet.training.recorder import Recorder
from coatnet.training.utilisation import flops_per_image
from data_pipeline.class_weights import balanced_weights
from data_pipeline.decode import backend_name
from data_pipeline.open_corpus import open_evaluation_corpus, open_train_corpora
from data_pipeline.stream import Stream
from finetune.config import FinetuneConfig
from finetune.engine import Engine
from finetune.start import make_calendar, starting_model
from finetune.trainer import State, Trainer

# Sections that change where and how, but not what comes out: they may change under a run.
NOT_THE_RESULT = ("launch", "run", "save", "seeds")


def main(arguments: Sequence[str]) -> None:
    """Join the ranks, train, leave a marker."""
    config = load_config(FinetuneConfig, arguments[0] or None, overrides=arguments[1:])
    start = Ranks.start if already_launched() else Ranks.single
    ranks = start(deterministic=config.launch.deterministic)
    run, digest = RunDirectory(config.run.directory), config_digest(config, without=NOT_THE_RESULT)
    about = {
        "config_yaml": to_yaml(config),
        "digest": digest,
        "decoder": backend_name(config.data.decoder),
        "network": rows.name(device_type=ranks.device_type),
    }
    with StopFlag() as stop, opened_run(run, ranks=ranks, **about) as lease:
        if run.marker("done") is None:
            trainer = make_trainer(config, ranks=ranks, run=run, lease=lease, digest=digest)
            with closing(trainer.recorder), closing(trainer.checkpoints):
                trainer.train(stop)
    ranks.stop()


def make_trainer(
    config: FinetuneConfig, *, ranks: Ranks, run: RunDirectory, lease: Lease | None, digest: str
) -> Trainer:
    """Put a run's parts together.

    Raises:
        UserError: the data, the checkpoint and the config do not fit together.
    """
    account = TimeAccount.of_run(run, ranks=ranks)
    corpora = open_train_corpora(config.data)
    classes = corpora[0].classes
    unseen = open_evaluation_corpus(config.data, classes=classes)
    weights = None
    if config.loss.class_weights == "balanced":
        weights = torch.tensor(balanced_weights(corpora), device=ranks.device)
    calendar = make_calendar(config, epoch_samples=sum(corpus.samples for corpus in corpora))
    model, model_config, origin = starting_model(config, classes=classes)
    engine = Engine(model, config, ranks=ranks)
    augment = replace(config.augment, image_size=calendar.phases[-1].image_size)
    recorder = Recorder(
        run,
        ranks=ranks,
        account=account,
        metrics=MetricsLog(run, enabled=ranks.is_main),
        total=calendar.total,
        augmented=lambda batch: trainer.augmented(batch),
        flops_per_image=flops_per_image(model_config, augment.image_size),
    )
    stream = Stream(
        corpora,
        config.data,
        config.augment,
        seed=config.seed,
        phases=calendar.phases,
        ranks=ranks,
        account=account,
    )
    save = replace(config.save, best="top1") if config.train.patience else config.save
    checkpoints = Checkpoints(
        run.checkpoints,
        save,
        engine=engine.state,
        stream=stream,
        ranks=ranks,
        lease=lease,
        account=account,
        facts={
            "kind": "finetune",
            "model": to_dict(model_config),
            "classes": classes,
            "augment": to_dict(augment),
            "config_digest": digest,
            "origin": origin,
        },
        alarm=recorder.alarm,
        state_type=State,
    )
    trainer = Trainer(
        config, ranks, run, calendar, stream, engine, checkpoints, account, recorder, unseen, classes, weights
    )
    return trainer


if __name__ == "__main__":
    run_rank(main)
