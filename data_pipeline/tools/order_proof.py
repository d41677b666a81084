"""Proves, for one epoch, that every world size reads every sample exactly once, in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.numbering import Numbering
from data_pipeline.order import Order
from data_pipeline.steps import Steps


def prove_order(
    order: Order,
    counts: NDArray[np.int64],
    *,
    global_batch: int,
    world_sizes: Sequence[int],
    epoch: int,
    done: Callable[[int], None],
) -> dict[str, Any]:
    """Walk through the steps of an epoch, the last one masked, for each world size, and count.

    Returns:
        Per world size: samples read more than once and never within the walk, steps whose set of samples
        differs from the order's, and how many shards a rank reads.
    """
    numbering = Numbering(counts)
    results = [
        _walk(order, numbering, global_batch=global_batch, world_size=world_size, epoch=epoch, done=done)
        for world_size in world_sizes
    ]
    return {
        "samples": order.samples,
        "shards": len(counts),
        "lanes": order.lanes,
        "steps": order.epoch_samples // global_batch,
        "tail_samples": order.epoch_samples % global_batch,
        "world_sizes": results,
        "exactly_once": all(
            not (row["doubled"] or row["missing"] or row["differing_steps"]) for row in results
        ),
    }


def _walk(
    order: Order,
    numbering: Numbering,
    *,
    global_batch: int,
    world_size: int,
    epoch: int,
    done: Callable[[int], None],
) -> dict[str, int]:
    first, last = epoch * order.epoch_samples, (epoch + 1) * order.epoch_samples
    times_read = np.zeros(order.samples, dtype=np.uint8)
    rank_shards: list[set[int]] = [set() for _ in range(world_size)]
    differing, begin = 0, first
    ranks = [Steps(order, global_batch, rank, world_size, masked=True) for rank in range(world_size)]
    while begin < last:
        end = ranks[0].end(begin)
        counting = np.arange(global_batch) < end - begin  # the others only fill the last step
        together = np.concatenate([steps.positions(begin) for steps in ranks])
        differing += not np.array_equal(np.sort(together[counting]), np.arange(begin, end))
        places = order.locate(together)
        np.add.at(times_read, numbering.numbers(places.shard, places.index)[counting], 1)
        for rank, shards in enumerate(np.split(places.shard, world_size)):
            rank_shards[rank].update(np.unique(shards).tolist())
        done(end - begin)
        begin = end
    return {
        "world_size": world_size,
        "doubled": int(np.count_nonzero(times_read > 1)),
        "missing": int(np.count_nonzero(times_read == 0)) - (order.samples - order.epoch_samples),
        "differing_steps": differing,
        "most_shards_of_a_rank": max(map(len, rank_shards)),
    }


def first_reads(order: Order, *, global_batch: int, world_size: int, steps: int) -> list[dict[str, Any]]:
    """Return which rank reads which shards in the first steps."""
    ranks = [Steps(order, global_batch, rank, world_size) for rank in range(world_size)]
    places = [order.locate(own.positions(step * global_batch)) for step in range(steps) for own in ranks]
    return [
        {
            "step": number // world_size,
            "rank": number % world_size,
            "shards": np.unique(found.shard).tolist(),
        }
        for number, found in enumerate(places)
    ]
