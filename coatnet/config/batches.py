"""How a step's images are cut: over the ranks, into micro-batches, into batch norm's groups.

The plan, the submission and the run ask here, so that none of them takes what another refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from coatnet.config.errors import UserError
from coatnet.config.plain_text import number_of

MOST_ON_CORES = 64  # the largest micro-batch that a run tries where no limit can be run into safely


def share_of(global_batch: int, *, world_size: int) -> int:
    """Return a rank's share of a step.

    Raises:
        UserError: the ranks cannot share it evenly.
    """
    if global_batch < 1 or global_batch % world_size:
        raise UserError(
            f"train.global_batch is {global_batch}; allowed with {number_of(world_size, 'rank')}: "
            f"multiples of {world_size}"
        )
    return global_batch // world_size


def cut(
    batches: Sequence[int],
    *,
    world_size: int,
    micro_batch: int | None,
    group_images: int | None,
    mixed: bool,
    evenly: bool = True,
    settled: int | None = None,
) -> tuple[list[int], int]:
    """Return the micro-batch of every global batch, and the images that batch norm takes together.

    Args:
        micro_batch: as the config says; None for all of a rank's share.
        group_images: as the config says; None for the smallest micro-batch.
        mixed: whether images of a group are mixed, by mixup or cutmix.
        evenly: whether a micro-batch must divide the share and a group the micro-batch, as pretraining wants
            it; fine-tuning takes the rest as a smaller one.
        settled: the group that the run began with, which goes before both.

    Raises:
        UserError: a batch or a micro-batch cannot be cut evenly.
    """
    micro_batches = []
    for batch in batches:
        share = share_of(batch, world_size=world_size)
        if evenly and share % (micro_batch or share):
            raise UserError(
                f"train.micro_batch is {micro_batch}; allowed with {number_of(world_size, 'rank')}: "
                f"divisors of {share}, each one's share of train.global_batch={batch}"
            )
        micro_batches.append(min(micro_batch or share, share))
    group = settled or group_images or min(micro_batches)
    if not evenly:
        return micro_batches, group
    for one in micro_batches:
        if one % group and settled:
            raise UserError(
                f"norm.group_images is {group} since the first start; allowed micro-batches: its multiples; "
                f"with {number_of(world_size, 'rank')} theirs is {one}. Give fewer ranks or another "
                "train.micro_batch"
            )
        if one % group:
            raise UserError(f"norm.group_images is {group}; allowed: divisors of the micro-batch, {one}")
    if mixed and group == 1:
        raise UserError("norm.group_images is 1; allowed with augment.mixup or augment.cutmix: 2 or more")
    return micro_batches, group
