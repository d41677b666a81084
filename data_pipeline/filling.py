"""Fills training batches: reads, decodes, puts substitutes in bad samples' places. Knows no order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from coatnet.config import UserError
from data_pipeline.assemble import Assembler
from data_pipeline.batch import BadSample, Batch, Tail
from data_pipeline.decode import DecodeError
from data_pipeline.numbering import Numbering
from data_pipeline.order import Places
from data_pipeline.permutation import Integers, derive_key, derive_keys
from data_pipeline.record import BadSampleError, Record, SampleSource

_SAMPLE, _SUBSTITUTE = 5, 6  # purposes of a key; the orders' own are 1 to 4
_SUBSTITUTES = 16  # with half of a corpus lost, all of them are bad once in 65,536 samples


@dataclass
class PendingBatch:
    """A training batch under way, as `prefetch.Pending`."""

    filler: BatchFiller
    positions: Integers
    places: Places
    keys: Integers
    images: torch.Tensor
    labels: NDArray[np.generic]
    tail: Tail | None = None
    bad: list[BadSample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)

    def fill(self, begin: int, end: int) -> None:
        """Read and decode the rows from `begin` to `end`."""
        self.filler.fill(self, begin, end)

    def finish(self) -> Batch:
        """Return the batch, its bad samples in the order of positions."""
        return Batch(
            images=self.images,
            labels=torch.from_numpy(self.labels),
            positions=torch.from_numpy(self.positions),
            keys=torch.from_numpy(self.keys),
            bad=sorted(self.bad, key=lambda sample: sample.position),
            tail=self.tail,
        )


class BatchFiller:
    """Reads and decodes what a plan names.

    Attributes:
        excluded: positions, and how often what stood there was to be left out: the sample itself, then each
            time what had replaced it, as a bad one's substitute at once. No sample counts as bad for that.
    """

    def __init__(
        self,
        corpora: Sequence[SampleSource],
        assembler: Assembler,
        *,
        seed: int,
        paths: Sequence[str] = (),
    ) -> None:
        """Fill from corpora; `paths` to them tell their samples apart, since shards are called alike."""
        self._corpora, self._paths = list(corpora), paths
        self._assembler = assembler
        self._seed = seed
        self._numberings = [Numbering(corpus.counts) for corpus in corpora]
        self.excluded: Counter[int] = Counter()

    def name(self, corpus: int, shard: int, index: int) -> str:
        """Name a sample, for people; one of a mixture with the corpus that it is of."""
        own = self._corpora[corpus].name(shard, index)
        return f"{self._paths[corpus].rstrip('/')}/{own}" if len(self._paths) > 1 else own

    def plan(self, positions: Integers, places: Places, *, tail: Tail | None = None) -> PendingBatch:
        """Return an empty batch for some places, its buffers allocated."""
        return PendingBatch(
            filler=self,
            positions=positions,
            places=places,
            keys=self._sample_keys(places),
            images=self._assembler.empty_images(len(positions)),
            labels=self._assembler.label_array(len(positions)),
            tail=tail,
        )

    def fill(self, batch: PendingBatch, begin: int, end: int) -> None:
        """Read and decode the rows from `begin` to `end`."""
        chosen = [self._own_sample(batch, row) for row in range(begin, end)]
        rows = [begin + number for number, record in enumerate(chosen) if record is not None]
        records = [record for record in chosen if record is not None]
        if len(records) == end - begin:
            verdicts = self._assembler.decode(records, batch.keys[begin:end], batch.images.numpy()[begin:end])
        else:
            verdicts = [self._decode_one(*pair, batch) for pair in zip(records, rows, strict=True)]
        for row, record, verdict in zip(rows, records, verdicts, strict=True):
            if verdict is not None:
                self._substitute(batch, row, reason=str(verdict))
            elif int(batch.positions[row]) in self.excluded:
                self._substitute(batch, row, reason=None)
            else:
                self._assembler.put_label(batch.labels, row, record)

    def _own_sample(self, batch: PendingBatch, row: int) -> Record | None:
        """Read a row's own sample, or substitute it at once where it cannot be read."""
        places = batch.places
        try:
            return self._corpora[places.corpus[row]].read(int(places.shard[row]), int(places.index[row]))
        except BadSampleError as error:
            self._substitute(batch, row, reason=str(error))
            return None

    def _decode_one(self, record: Record, row: int, batch: PendingBatch) -> DecodeError | None:
        out = batch.images.numpy()[row : row + 1]
        return self._assembler.decode([record], batch.keys[row : row + 1], out)[0]

    def _substitute(self, batch: PendingBatch, row: int, *, reason: str | None) -> None:
        """Put another sample of the same corpus in a row's place: the same one in every run.

        Args:
            reason: what is wrong with the row's own; None where it is good and excluded.

        Raises:
            UserError: none of the candidates can be used either.
        """
        position, number = int(batch.positions[row]), int(batch.places.corpus[row])
        corpus = self._corpora[number]
        own = int(batch.places.shard[row]), int(batch.places.index[row])
        name = self.name(number, *own)
        refused = self.excluded[position] - (reason is None)  # substitutes; they count to none of the tries
        tries = np.arange(_SUBSTITUTES + refused)
        candidates = derive_keys(derive_key(self._seed, _SUBSTITUTE, position), tries)
        for candidate in (candidates % np.uint64(corpus.samples)).tolist():
            shard, index = self._numberings[number].place(candidate)
            if (shard, index) == own:
                continue
            place = (number, int(batch.places.epoch[row]), shard, index)
            batch.keys[row] = self._sample_keys(Places(*(np.array([part]) for part in place)))[0]
            try:
                record = corpus.read(shard, index)
            except BadSampleError:
                continue
            if self._decode_one(record, row, batch) is None and (refused := refused - 1) < 0:
                self._assembler.put_label(batch.labels, row, record)
                if reason is not None and (batch.tail is None or batch.tail.weights[row] > 0):
                    batch.bad.append(BadSample(position, name, reason, self.name(number, shard, index)))
                return
        raise UserError(f"{name}: {reason or 'excluded'}; {_SUBSTITUTES} substitutes are bad as well")

    def _sample_keys(self, places: Places) -> Integers:
        """Return the keys of samples: hashes of (seed, corpus, epoch, number in the corpus)."""
        keys = np.empty_like(places.epoch)
        for number in np.unique(places.corpus).tolist():
            chosen = places.corpus == number
            corpus_key = derive_key(self._seed, _SAMPLE, number)
            samples = self._numberings[number].numbers(places.shard[chosen], places.index[chosen])
            both = derive_keys(corpus_key, samples) ^ derive_keys(corpus_key + 1, places.epoch[chosen])
            keys[chosen] = derive_keys(corpus_key, both.view(np.int64)).view(np.int64)
        return keys
