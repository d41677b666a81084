"""Training batches from corpora: the order's positions, read, decoded and handed over by threads.

A batch is a pure function of (corpora, config, seed, position): the number of threads, the history of the
process and, for the set of samples in a step, the world size do not matter. Knows no model and no device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from coatnet.config import UserError
from coatnet.config.batches import share_of
from data_pipeline.assemble import Assembler
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch, Tail
from data_pipeline.budget import BadSampleBudget
from data_pipeline.config import DataConfig
from data_pipeline.filling import BatchFiller, PendingBatch
from data_pipeline.lookahead import Lookahead
from data_pipeline.open_corpus import common_classes
from data_pipeline.prefetch import made_ahead
from data_pipeline.record import SampleSource
from data_pipeline.steps import Steps
from data_pipeline.training_order import make_order

_STATE_VERSION = 1  # of the order, and of all that is drawn by a sample's key: tests/golden records them
_STATE_NAMES = {
    "version": "version of the order",
    "corpora": "data.train",
    "seed": "seed",
    "order": "data.lanes, window or tail",
}


class TrainLoader:
    """The training stream of one rank."""

    def __init__(
        self,
        corpora: Sequence[SampleSource],
        data: DataConfig,
        augment: AugmentConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Prepare the stream; nothing is read yet.

        Raises:
            UserError: corpora that do not fit together, or a batch that the ranks cannot share.
        """
        share_of(global_batch, world_size=world_size)
        classes = common_classes(corpora)
        self._corpora = list(corpora)
        self._data = data
        self._seed = seed
        self._order = make_order(corpora, data, seed=seed, global_batch=global_batch)
        multi = any(corpus.label_kind == "multi" for corpus in corpora)
        assembler = Assembler(augment, True, len(classes) if multi else 0, data.decoder)
        paths = [entry.path for entry in data.train]
        self._filler = BatchFiller(corpora, assembler, seed=seed, paths=paths)
        expected = self._order.epoch_samples / world_size
        self._budget = BadSampleBudget(data.bad_sample_budget, expected=expected)
        self._steps = Steps(self._order, global_batch, rank, world_size, masked=data.tail == "mask")

    def from_sample(
        self, samples_seen: int, *, meanwhile: Callable[[], None] = lambda: None
    ) -> Generator[Batch, None, None]:
        """Yield this rank's batches, one per step, from a position on; endless.

        Close the iterator (or let it be collected) to end its threads.

        Args:
            samples_seen: the position.
            meanwhile: called every so often while a batch does not come; what it raises ends the wait.

        Raises:
            UserError: more bad samples than the budget allows.
        """
        plans = self._plans(samples_seen)
        threads, ahead = self._data.threads, self._data.prefetch
        batches = made_ahead(plans, threads=threads, ahead=ahead, meanwhile=meanwhile)
        try:
            for batch in batches:
                self._budget.count(read=len(batch.seen), bad=batch.bad)
                yield batch
        finally:
            batches.close()

    def exclude(self, positions: Iterable[int]) -> None:
        """Replace the samples at some positions from now on, as if they were bad, without counting them.

        What has replaced them, or a bad one, is replaced where they come again.
        """
        self._filler.excluded.update(positions)

    @property
    def excluded(self) -> Counter[int]:
        """How often each position was excluded."""
        return self._filler.excluded

    def name(self, position: int) -> str:
        """Name the sample at a position of the order, for people; what replaced it is not told."""
        places = self._order.locate(np.array([position], dtype=np.int64))
        return self._filler.name(*(int(one[0]) for one in (places.corpus, places.shard, places.index)))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside `samples_seen`; the same on every rank."""
        corpora = zip(self._corpora, self._data.train, strict=True)
        most = max(self.excluded.values(), default=0)
        return {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "corpora": [[corpus.digest, entry.weight] for corpus, entry in corpora],
            "order": [self._data.lanes, self._data.window, self._data.tail],
            "epoch_samples": self._order.epoch_samples,
            "excluded": [one for often in range(most) for one in _ranges(often, self.excluded)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the exclusions of a saved state.

        Raises:
            UserError: the state belongs to another order, so that the stream could not go on exactly.
        """
        own = self.state()
        for key, name in _STATE_NAMES.items():
            if state.get(key) != own[key]:
                raise UserError(
                    f"{name}: the checkpoint has {state.get(key)}, this run {own[key]}: the order of samples "
                    "would not go on; use the former value, or start a new run"
                )
        epoch = state.get("epoch_samples", own["epoch_samples"])  # not kept by those who wrote before
        if epoch != own["epoch_samples"]:
            raise UserError(
                f"train.global_batch: with data.tail=drop an epoch of the checkpoint has {epoch:,} samples, "
                f"one of this run {own['epoch_samples']:,}: the order of samples would not go on; use the "
                "former value, or start a new run"
            )
        saved = (position for first, end in state["excluded"] for position in range(first, end))
        self._filler.excluded |= Counter(saved)

    def _plans(self, samples_seen: int) -> Iterator[PendingBatch]:
        ahead, ahead_shards = None, self._data.cache.ahead_shards
        if ahead_shards and any(corpus.remote for corpus in self._corpora):
            ahead = Lookahead(self._order, self._corpora, self._steps, ahead_shards=ahead_shards)
        while True:
            if ahead is not None:
                ahead.at(samples_seen)
            positions, end = self._steps.positions(samples_seen), self._steps.end(samples_seen)
            weights = self._steps.weights(samples_seen)
            tail = None if weights is None else Tail(end - samples_seen, torch.from_numpy(weights))
            yield self._filler.plan(positions, self._order.locate(positions), tail=tail)
            samples_seen = end


def _ranges(often: int, excluded: Counter[int]) -> list[list[int]]:
    """Compress the positions that were excluded more often to [first, end) ranges."""
    ranges: list[list[int]] = []
    for position in sorted(position for position, times in excluded.items() if times > often):
        if ranges and ranges[-1][1] == position:
            ranges[-1][1] += 1
        else:
            ranges.append([position, position + 1])
    return ranges
