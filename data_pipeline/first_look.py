"""A first look at a run's data, before anything heavy is loaded: what cannot work is said within a second.

Remote corpora are left to the ranks, since a network takes its time. Knows no loader; imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from coatnet.config import UserError
from coatnet.config.batches import share_of
from coatnet.runtime.launch import device_count
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.class_weights import check_single_labels
from data_pipeline.config import DataConfig
from data_pipeline.decode import backend_name
from data_pipeline.folder import keep_out
from data_pipeline.open_corpus import common_classes, open_corpus, open_evaluation_corpus, open_train_corpora
from data_pipeline.record import SampleSource
from data_pipeline.remote.address import check_url, is_url
from data_pipeline.training_order import make_order


def look_at_data(
    config: Any, *, make_calendar: Callable[..., Any], averaged: bool = False
) -> list[str] | None:
    """Open what lies on this machine and check that it fits together; return the classes if all of it does.

    Args:
        config: a root schema with the sections run, data, loss, optimizer, schedule, train, evaluate, save
            and launch, and a seed.
        make_calendar: refuses a run without a step, given the config and `epoch_samples`.
        averaged: evaluations judge the moving average beside the weights.

    Raises:
        UserError: something is not there, or does not fit.
    """
    data: DataConfig = config.data
    try:
        backend_name(data.decoder)
    except ValueError as error:
        raise UserError(f"data.decoder: {error}") from None
    share_of(config.train.global_batch, world_size=config.launch.ranks or device_count())
    transfer = getattr(config.evaluate, "transfer", None)
    paths = [entry.path for entry in data.train] + [path for path in (data.evaluate, transfer) if path]
    keep_out("run.directory", config.run.directory, paths)
    remote = [path for path in paths if is_url(path)]
    for path in remote:
        check_url(path)
    if remote:
        if data.evaluate not in remote:
            check_best(config, open_corpus(data.evaluate) if data.evaluate else None, averaged=averaged)
        return None
    corpora = open_train_corpora(data)
    run = RunDirectory(config.run.directory)
    run.check_corpora({"data.train": [one.digest for one in corpora]})
    classes = common_classes(corpora)
    make_order(corpora, data, seed=config.seed, global_batch=config.train.global_batch)
    make_calendar(config, epoch_samples=sum(corpus.samples for corpus in corpora))
    if config.loss.class_weights != "none":
        check_single_labels(corpora, needed_by=f"loss.class_weights is {config.loss.class_weights!r}")
    evaluated = open_evaluation_corpus(data, classes=classes)
    run.check_corpora({"data.evaluate": [] if evaluated is None else [evaluated.digest]})
    check_best(config, evaluated, averaged=averaged)
    if transfer:
        check_single_labels([open_corpus(transfer)], needed_by="evaluate.transfer")
    for warning in _warnings(config, corpora, evaluated):
        print(f"warning: {warning}", file=sys.stderr)
    return classes


def _warnings(config: Any, corpora: Sequence[SampleSource], evaluated: SampleSource | None) -> Iterator[str]:
    """Yield what works, but hardly as it was meant."""
    images, batch = sum(corpus.samples for corpus in corpora), config.train.global_batch
    if batch > images:
        yield (
            f"a step takes {batch:,} images (train.global_batch), and there are {images:,}; a smaller batch "
            "makes more steps of them"
        )
    peak, minimum = config.optimizer.learning_rate, config.schedule.minimum
    if config.schedule.shape != "constant" and minimum > peak:
        yield (
            f"schedule.minimum, {minimum:g}, is above optimizer.learning_rate, {peak:g}, so that the rate "
            "will not fall; give a lower minimum"
        )
    if all(corpus.label_kind == "single" for corpus in corpora):
        return
    if config.loss.name == "softmax":
        yield (
            "data.train has several labels per image, and loss.name is 'softmax', which suits labels that "
            "are shares of one; loss.name=sigmoid is for labels of their own"
        )
    if evaluated is not None and evaluated.label_kind == "single":
        yield (
            "data.train has several labels per image, and data.evaluate one each, which is judged by top-1; "
            "where it was sharded with --multi-label it is judged by mAP"
        )


def check_best(config: Any, evaluated: SampleSource | None, *, averaged: bool = False) -> None:
    """Check that evaluations will have the figure that the best checkpoint is kept by, or patience ends by.

    Args:
        config: as of `look_at_data`.
        evaluated: what the run is evaluated on.
        averaged: evaluations judge the moving average beside the weights.

    Raises:
        UserError: they will not.
    """
    kind = None if evaluated is None else evaluated.label_kind
    patience = getattr(config.train, "patience", 0)
    transfer = bool(getattr(config.evaluate, "transfer", None))
    config.save.check_best(kind, averaged=averaged, transfer=transfer, patience=patience)
