"""Proves, for one epoch, that every world size reads every sample exactly once, in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order import Order, step_positions


def prove_order(
    order: Order,
    counts: NDArray[np.int64],
    *,
    global_batch: int,
    world_sizes: Sequence[int],
    epoch: int,
    done: Callable[[int], None],
) -> dict[str, Any]:
    """Walk through the whole steps of an epoch for each world size, and count.

    Returns:
        Per world size: samples read more than once and never within the walk, steps whose set of samples
        differs from the order's, and how many shards a rank reads.
    """
    starts = np.cumsum(counts) - counts
    first = epoch * order.epoch_samples
    steps = order.epoch_samples // global_batch
    tail = order.epoch_samples - steps * global_batch
    results = []
    for world_size in world_sizes:
        times_read = np.zeros(order.samples, dtype=np.uint8)
        rank_shards: list[set[int]] = [set() for _ in range(world_size)]
        differing = 0
        for step in range(steps):
            begin = first + step * global_batch
            shares = [
                step_positions(order, begin, global_batch=global_batch, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            together = np.concatenate(shares)
            differing += not np.array_equal(np.sort(together), np.arange(begin, begin + global_batch))
            places = order.locate(together)
            np.add.at(times_read, starts[places.shard] + places.index, 1)
            for rank, shards in enumerate(np.split(places.shard, world_size)):
                rank_shards[rank].update(np.unique(shards).tolist())
            done(global_batch)
        rest = order.locate(np.arange(first + steps * global_batch, first + order.epoch_samples))
        np.add.at(times_read, starts[rest.shard] + rest.index, 1)
        results.append(
            {
                "world_size": world_size,
                "doubled": int(np.count_nonzero(times_read > 1)),
                "missing": int(np.count_nonzero(times_read == 0)) - (order.samples - order.epoch_samples),
                "differing_steps": differing,
                "most_shards_of_a_rank": max(map(len, rank_shards)),
            }
        )
    return {
        "samples": order.samples,
        "shards": len(counts),
        "lanes": order.lanes,
        "steps": steps,
        "tail_samples": tail,
        "world_sizes": results,
        "exactly_once": all(
            not (row["doubled"] or row["missing"] or row["differing_steps"]) for row in results
        ),
    }


def first_reads(order: Order, *, global_batch: int, world_size: int, steps: int) -> list[dict[str, Any]]:
    """Return which rank reads which shards in the first steps."""
    return [
        {
            "step": step,
            "rank": rank,
            "shards": np.unique(
                order.locate(
                    step_positions(
                        order,
                        step * global_batch,
                        global_batch=global_batch,
                        rank=rank,
                        world_size=world_size,
                    )
                ).shard
            ).tolist(),
        }
        for step in range(steps)
        for rank in range(world_size)
    ]
