"""How a run's images are cut: into steps, ranks, micro-batches and the groups of batch norm."""

from __future__ import annotations

import json

from coatnet.config import Duration, UserError
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.training.calendar import Calendar, Change
from pretrain.config import PretrainConfig


def make_calendar(config: PretrainConfig, *, epoch_samples: int) -> Calendar:
    """Return the run's calendar.

    Raises:
        UserError: a run without a step, or batch changes out of order.
    """
    batch, image_size = config.train.global_batch, config.augment.image_size
    changes = [
        Change(
            Duration.parse(one.at).in_samples(epoch_samples=epoch_samples, global_batch=batch),
            one.global_batch,
            image_size,
        )
        for one in config.train.batch_changes
    ]
    return Calendar.make(config, epoch_samples=epoch_samples, changes=changes)


def settle_group_images(config: PretrainConfig, *, ranks: Ranks, run: RunDirectory) -> int:
    """Return the images whose statistics batch norm takes together.

    They are part of the mathematics: what the first start found (the micro-batch, unless the config says
    otherwise) holds for the whole run, at whatever number of ranks it goes on.

    Raises:
        UserError: batches that cannot be cut evenly.
    """
    file = run.path / "group_images.json"
    known = ranks.is_main and run.has_begun and file.exists()
    settled = ranks.broadcast(json.loads(file.read_text()) if known else None)
    group = cut(config, world_size=ranks.world_size, settled=settled)
    if ranks.is_main and settled is None:
        write_atomically(file, f"{group}\n")
    return group


def cut(config: PretrainConfig, *, world_size: int, settled: int | None = None) -> int:
    """Check that every batch can be cut evenly and return the group.

    Raises:
        UserError: one cannot.
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
    cuts = [micro] if micro is not None else [batch // world_size for batch in batches]
    group = settled or config.norm.group_images or min(cuts)
    for one in cuts:
        if one % group:
            raise UserError(
                f"norm.group_images is {group}{' since the first start' if settled else ''}; "
                f"allowed: divisors of the micro-batch, {one}"
            )
    return group
