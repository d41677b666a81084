"""Proves, for one epoch, that every world size reads every sample exactly once, in the same steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.numbering import Numbering
from data_pipeline.order import Order
from data_pipeline.record import SampleSource
from data_pipeline.steps import Steps
from data_pipeline.training_order import make_order


def prove_order(
    corpus: SampleSource,
    *,
    global_batch: int,
    world_sizes: Sequence[int],
    seed: int,
    epoch: int,
    show_steps: int,
    done: Callable[[int], None],
) -> dict[str, Any]:
    """Walk through the steps of an epoch, the last one masked, for each world size, and count.

    Args:
        corpus: read as training does by default.
        show_steps: tell of so many first steps which rank reads which shards.
        done: is told of so many more positions walked through.

    Returns:
        Per world size: samples read more than once and never within the walk, steps whose set of samples
        differs from the order's, and how many shards a rank reads.
    """
    order = make_order([corpus], DataConfig(), seed=seed, global_batch=global_batch)
    assert isinstance(order, Order), "one corpus is no mixture"
    numbering = Numbering(corpus.counts)
    results = [
        _walk(order, numbering, global_batch=global_batch, world_size=world_size, epoch=epoch, done=done)
        for world_size in world_sizes
    ]
    return {
        "samples": order.samples,
        "shards": len(corpus.counts),
        "lanes": order.lanes,
        "steps": order.epoch_samples // global_batch,
        "tail_samples": order.epoch_samples % global_batch,
        "world_sizes": results,
        "exactly_once": all(
            not (row["doubled"] or row["missing"] or row["differing_steps"]) for row in results
        ),
        "reads": [row for size in world_sizes for row in _first_reads(order, global_batch, size, show_steps)],
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


def _first_reads(order: Order, global_batch: int, world_size: int, steps: int) -> Iterator[dict[str, Any]]:
    ranks = [Steps(order, global_batch, rank, world_size) for rank in range(world_size)]
    for step in range(steps):
        for rank, own in enumerate(ranks):
            shards = np.unique(order.locate(own.positions(step * global_batch)).shard).tolist()
            yield {"world_size": world_size, "step": step, "rank": rank, "shards": shards}
