"""Training batches from corpora: the order's positions, read, decoded and handed over by threads.

A batch is a pure function of (corpora, config, seed, position): the number of threads, the history of the
process and, for the set of samples in a step, the world size do not matter. Knows no model and no device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coatnet.config import UserError
from data_pipeline.assemble import Assembler
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import BadSample, Batch
from data_pipeline.budget import BadSampleBudget
from data_pipeline.config import DataConfig
from data_pipeline.decode import DecodeError
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, Places, PositionOrder, step_positions
from data_pipeline.permutation import derive_key, derive_keys
from data_pipeline.prefetch import made_ahead
from data_pipeline.record import BadSampleError, Record, SampleSource

_CORPUS, _SAMPLE, _SUBSTITUTE = 4, 5, 6  # purposes of a key; the orders' own are 1 to 3
_MAX_CHUNK = 32
_SUBSTITUTES = 16  # with half of a corpus lost, all of them are bad once in 65,536 samples
_STATE_VERSION = 1


class TrainLoader:
    """The training stream of one rank.

    Attributes:
        epoch_samples: samples in an epoch.
        classes: names, by label.
        num_classes: how many.
    """

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
        if global_batch < 1 or global_batch % world_size:
            raise UserError(
                f"global_batch is {global_batch}; allowed with {world_size} ranks: multiples of {world_size}"
            )
        self.classes = _common_classes(corpora)
        self.num_classes = len(self.classes)
        self._corpora = list(corpora)
        self._data = data
        self._seed = seed
        self._global_batch = global_batch
        self._rank, self._world_size = rank, world_size
        self._order = make_order(corpora, data, seed=seed, global_batch=global_batch)
        self.epoch_samples = self._order.epoch_samples
        self._starts = [np.cumsum(corpus.counts) - corpus.counts for corpus in corpora]
        self._excluded: set[int] = set()
        multi = any(corpus.label_kind == "multi" for corpus in corpora)
        self._assembler = Assembler(augment, True, self.num_classes if multi else 0, data.decoder)
        self._size = augment.image_size
        self._budget = BadSampleBudget(data.bad_sample_budget, expected=self.epoch_samples / world_size)

    def from_sample(self, samples_seen: int) -> Generator[Batch, None, None]:
        """Yield this rank's batches, one per step, from a position on; endless.

        Close the iterator (or leave its generator to be collected) to end its threads.

        Raises:
            UserError: more bad samples than the budget allows.
        """
        batches = made_ahead(self._plans(samples_seen), threads=self._data.threads, ahead=self._data.prefetch)
        try:
            for batch in batches:
                self._budget.count(read=len(batch), bad=batch.bad)
                yield batch
        finally:
            batches.close()

    def exclude(self, positions: Sequence[int]) -> None:
        """Replace the samples at some positions from now on, as if they were bad, without counting them."""
        self._excluded.update(int(position) for position in positions)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside `samples_seen`; the same on every rank."""
        return {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "corpora": [[corpus.digest, entry.weight] for corpus, entry in self._weighted()],
            "order": [self._data.lanes, self._data.window, self._data.tail],
            "excluded": _ranges(sorted(self._excluded)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the exclusions of a saved state.

        Raises:
            UserError: the state belongs to another order, so that the stream could not go on exactly.
        """
        own = self.state()
        for key, what in (
            ("corpora", "data.train"),
            ("seed", "seed"),
            ("order", "data.lanes, window or tail"),
        ):
            if state.get(key) != own[key]:
                raise UserError(
                    f"the checkpoint's {what} was {state.get(key)}, now it is {own[key]}: the order of samples "
                    "would not go on; use the former one, or start a new run"
                )
        self._excluded = {position for first, end in state["excluded"] for position in range(first, end)}

    def _weighted(self) -> Iterator[tuple[SampleSource, Any]]:
        return zip(self._corpora, self._data.train, strict=True)

    def _plans(self, samples_seen: int) -> Iterator[_PendingBatch]:
        while True:
            positions = step_positions(
                self._order,
                samples_seen=samples_seen,
                global_batch=self._global_batch,
                rank=self._rank,
                world_size=self._world_size,
            )
            yield self._plan(positions)
            samples_seen += self._global_batch

    def _plan(self, positions: NDArray[np.int64]) -> _PendingBatch:
        places = self._order.locate(positions)
        count = len(positions)
        pinned = torch.cuda.is_available()
        images = torch.empty((count, self._size, self._size, 3), dtype=torch.uint8, pin_memory=pinned)
        return _PendingBatch(
            loader=self,
            positions=positions,
            places=places,
            keys=self._sample_keys(places),
            images=images,
            labels=self._assembler.label_array(count),
            chunk=max(1, min(_MAX_CHUNK, ceil(count / self._data.threads))),
        )

    def _sample_keys(self, places: Places) -> NDArray[np.int64]:
        """Return the keys of samples: hashes of (seed, corpus, epoch, number in the corpus)."""
        keys = np.empty_like(places.epoch)
        for number in np.unique(places.corpus):
            chosen = places.corpus == number
            corpus_key = derive_key(self._seed, _SAMPLE, int(number))
            sample = self._starts[number][places.shard[chosen]] + places.index[chosen]
            epoch_keys = derive_keys(corpus_key, places.epoch[chosen])
            keys[chosen] = derive_keys(0, (epoch_keys ^ derive_keys(corpus_key, sample)).view(np.int64)).view(
                np.int64
            )
        return keys

    def _fill(self, batch: _PendingBatch, begin: int, end: int) -> None:
        """Read and decode a chunk of a batch into its buffers."""
        images = batch.images.numpy()
        records: list[Record | None] = []
        for row in range(begin, end):
            records.append(self._first_choice(batch, row))
        rows = [begin + number for number, record in enumerate(records) if record is not None]
        found = [record for record in records if record is not None]
        if len(rows) == end - begin:
            verdicts = self._assembler.decode(found, batch.keys[begin:end], images[begin:end])
        else:
            verdicts = [self._decode_one(record, batch, row) for row, record in zip(rows, found, strict=True)]
        for row, record, verdict in zip(rows, found, verdicts, strict=True):
            if verdict is None:
                self._assembler.put_label(batch.labels, row, record)
            else:
                self._substitute(batch, row, reason=str(verdict))

    def _first_choice(self, batch: _PendingBatch, row: int) -> Record | None:
        """Read a row's own sample, or substitute it at once where it is excluded or cannot be read."""
        if int(batch.positions[row]) in self._excluded:
            self._substitute(batch, row, reason=None)
            return None
        places = batch.places
        try:
            return self._corpora[places.corpus[row]].read(int(places.shard[row]), int(places.index[row]))
        except BadSampleError as error:
            self._substitute(batch, row, reason=str(error))
            return None

    def _decode_one(self, record: Record, batch: _PendingBatch, row: int) -> DecodeError | None:
        out = batch.images.numpy()[row : row + 1]
        return self._assembler.decode([record], batch.keys[row : row + 1], out)[0]

    def _substitute(self, batch: _PendingBatch, row: int, *, reason: str | None) -> None:
        """Put another sample of the same corpus in a row's place: the same one in every run."""
        position, number = int(batch.positions[row]), int(batch.places.corpus[row])
        corpus, starts = self._corpora[number], self._starts[number]
        name = corpus.name(int(batch.places.shard[row]), int(batch.places.index[row]))
        row_key = derive_key(self._seed, _SUBSTITUTE, position)
        for candidate in derive_keys(row_key, np.arange(_SUBSTITUTES)) % np.uint64(corpus.samples):
            shard = int(np.searchsorted(starts + corpus.counts, int(candidate), side="right"))
            index = int(candidate) - int(starts[shard])
            place = Places(*(np.array([value]) for value in (number, batch.places.epoch[row], shard, index)))
            batch.keys[row] = self._sample_keys(place)[0]
            try:
                record = corpus.read(shard, index)
            except BadSampleError:
                continue
            if self._decode_one(record, batch, row) is None:
                self._assembler.put_label(batch.labels, row, record)
                if reason is not None:
                    batch.bad.append(BadSample(position, name, reason, corpus.name(shard, index)))
                return
        raise UserError(
            f"{name}: {reason or 'excluded'}; {_SUBSTITUTES} substitutes in a row are bad as well"
        )


@dataclass
class _PendingBatch:
    """A training batch under way."""

    loader: TrainLoader
    positions: NDArray[np.int64]
    places: Places
    keys: NDArray[np.int64]
    images: torch.Tensor
    labels: NDArray[np.generic]
    chunk: int
    bad: list[BadSample] = field(default_factory=list)

    def chunks(self) -> list[Callable[[], None]]:
        count = len(self.positions)
        return [
            partial(self.loader._fill, self, begin, min(begin + self.chunk, count))
            for begin in range(0, count, self.chunk)
        ]

    def finish(self) -> Batch:
        return Batch(
            images=self.images,
            labels=torch.from_numpy(self.labels),
            positions=torch.from_numpy(self.positions),
            keys=torch.from_numpy(self.keys),
            bad=sorted(self.bad, key=lambda sample: sample.position),
        )


def make_order(
    corpora: Sequence[SampleSource], data: DataConfig, *, seed: int, global_batch: int
) -> PositionOrder:
    """Return the order of a mixture of corpora.

    Raises:
        UserError: a corpus without samples, or one that does not fill a step when the tail is dropped.
    """
    if data.tail == "drop" and len(corpora) > 1:
        raise UserError("data.tail is 'drop' with several corpora; allowed there: continue")
    orders = []
    for number, corpus in enumerate(corpora):
        dropped = corpus.samples % global_batch if data.tail == "drop" else 0
        if corpus.samples - dropped < 1:
            raise UserError(
                f"data.train[{number}]: holds {corpus.samples} samples, less than one global_batch of "
                f"{global_batch}; allowed: a smaller batch, or data.tail=continue"
            )
        orders.append(
            Order(
                corpus.counts,
                seed=derive_key(seed, _CORPUS, number),
                lanes=data.lanes,
                window=data.window,
                epoch_samples=corpus.samples - dropped,
            )
        )
    if len(orders) == 1:
        return orders[0]
    try:
        return Mixture(orders, [entry.weight for entry in data.train], seed=derive_key(seed, _CORPUS))
    except ValueError as error:
        raise UserError(f"data.train: {error}") from None


def _common_classes(corpora: Sequence[SampleSource]) -> list[str]:
    if not corpora:
        raise UserError("data.train is empty; give at least one corpus, data.train=[{path: SHARDS}]")
    classes = corpora[0].classes
    for number, corpus in enumerate(corpora[1:], start=1):
        if corpus.classes != classes:
            raise UserError(
                f"data.train[{number}]: has {len(corpus.classes)} classes that differ from the "
                f"{len(classes)} of data.train[0]; a mixture needs one vocabulary"
            )
    return classes


def _ranges(positions: list[int]) -> list[list[int]]:
    """Compress sorted positions to [first, end) ranges."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and ranges[-1][1] == position:
            ranges[-1][1] += 1
        else:
            ranges.append([position, position + 1])
    return ranges
