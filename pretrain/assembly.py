"""Data, model and engine of a config, put together: what a run and a replay of one of its steps share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import CoAtNet, build_model
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.ranks import Ranks
from coatnet.training.calendar import Calendar
from data_pipeline.class_weights import loss_weights
from data_pipeline.open_corpus import open_train_corpora
from data_pipeline.record import SampleSource
from data_pipeline.stream import Stream
from pretrain.batches import make_calendar
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Engine
from pretrain.engine.sharding import sharder
from pretrain.trainer import Trainer


@dataclass(frozen=True)
class Assembly:
    """The parts that take steps."""

    corpora: list[SampleSource]
    classes: list[str]
    model_config: ModelConfig
    model: CoAtNet
    engine: Engine
    calendar: Calendar
    stream: Stream
    trainer: Trainer


def assemble(config: PretrainConfig, *, ranks: Ranks, account: TimeAccount, group_images: int) -> Assembly:
    """Open the corpora and build the model and its engine.

    Raises:
        UserError: corpora, batches or model do not fit together.
    """
    corpora = open_train_corpora(config.data)
    classes = corpora[0].classes
    model_config = replace(config.model, num_classes=len(classes), image_size=config.augment.image_size)
    norm = replace(config.norm, group_images=group_images)
    if config.compile:
        on_compilation(lambda: account.enter("compile"), account.leave)
    model, engine = _build(config, model_config, norm=norm, ranks=ranks)
    calendar = make_calendar(config, epoch_samples=sum(corpus.samples for corpus in corpora))
    return Assembly(
        corpora=corpora,
        classes=classes,
        model_config=model_config,
        model=model,
        engine=engine,
        calendar=calendar,
        stream=Stream(corpora, config, phases=calendar.phases, ranks=ranks, account=account),
        trainer=Trainer(
            engine,
            config,
            num_classes=len(classes),
            group_images=group_images,
            account=account,
            class_weights=loss_weights(corpora, config.loss.class_weights, ranks=ranks),
        ),
    )


def _build(
    config: PretrainConfig, model_config: ModelConfig, *, norm: NormConfig, ranks: Ranks
) -> tuple[CoAtNet, Engine]:
    """Build the model with its first weights, and the engine that shards it."""
    placed = sharder(config.zero, ranks=ranks, precision=config.precision)
    model = _prepared(build_model(model_config, norm=norm, seed=config.seed, placed=placed), config)
    engine = Engine(
        model,
        ranks=ranks,
        zero=config.zero,
        optimizer=config.optimizer,
        precision=config.precision,
        ema_decay=config.ema or None,
        skeleton=lambda: _prepared(build_model(model_config, norm=norm, device="meta"), config),
    )
    return model, engine


def _prepared(model: CoAtNet, config: PretrainConfig) -> CoAtNet:
    """Let a model compute as the config says; its weights may come later."""
    model.set_activation_checkpointing(config.train.activation_checkpointing)
    if config.train.fused_mbconv:
        model.fuse_mbconv()
    if config.compile:
        model.compile_blocks()
    return model


def on_compilation(begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Call `begin` and `end` around every compilation here, of backward passes and later variants too.

    Its time has a class of its own, and is no hang.
    """
    from torch._dynamo.callback import callback_handler  # seconds, that only a run need wait for

    callback_handler.register_start_callback(lambda about: begin())
    callback_handler.register_end_callback(lambda about: end())
