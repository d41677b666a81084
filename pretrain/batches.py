"""How a run's images are cut: into steps, ranks, micro-batches and the groups of batch norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coatnet.config import Duration
from coatnet.config.batches import cut
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.training.calendar import Calendar, Change
from pretrain.config import PretrainConfig

if TYPE_CHECKING:  # it imports torch, before which a mistake is told
    from coatnet.runtime.ranks import Ranks


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
        UserError: batches that cannot be cut evenly, or what was found cannot be noted.
    """
    settled = ranks.broadcast(run.settled_group_images if ranks.is_main else None)
    group = group_images(config, world_size=ranks.world_size, settled=settled)
    if settled is None:
        ranks.try_on_main(lambda: write_atomically(run.group_images, f"{group}\n"), folder=run.path)
    return group


def group_images(config: PretrainConfig, *, world_size: int, settled: int | None = None) -> int:
    """Check that every batch can be cut evenly and return the group.

    Raises:
        UserError: one cannot.
    """
    batches = [config.train.global_batch, *(change.global_batch for change in config.train.batch_changes)]
    _, group = cut(
        batches,
        world_size=world_size,
        micro_batch=config.train.micro_batch,
        group_images=config.norm.group_images,
        mixed=config.augment.mixup > 0 or config.augment.cutmix > 0,
        settled=settled,
    )
    return group
