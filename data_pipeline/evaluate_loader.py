"""Evaluation batches: every sample exactly once, shared by the ranks. Knows no model and no device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.assemble import Assembler
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import BadSample, Batch
from data_pipeline.numbering import Numbering
from data_pipeline.prefetch import made_ahead
from data_pipeline.record import BadSampleError, Record, SampleSource

_PREFETCH = 2
_AHEAD_SHARDS = 4


class EvaluateLoader:
    """One rank's contiguous share of a corpus, in order; the last batch is short, and nothing is repeated.

    A bad sample is left out of its batch and named in it.

    Attributes:
        samples: of this rank.
        steps: the most batches that any rank has, for loops that must be equally long everywhere.
    """

    def __init__(
        self,
        corpus: SampleSource,
        augment: AugmentConfig,
        *,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        decoder: str = "auto",
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Read nothing yet; `meanwhile` is called now and then while a batch does not come, and may raise."""
        if batch < 1:
            raise ValueError(f"batch is {batch}; allowed: 1 or more")
        self._corpus = corpus
        self._first = corpus.samples * rank // world_size
        self._end = corpus.samples * (rank + 1) // world_size
        self.samples = self._end - self._first
        self.steps = ceil(ceil(corpus.samples / world_size) / batch)
        self._batch, self._threads, self._meanwhile = batch, threads, meanwhile
        width = len(corpus.classes) if corpus.label_kind == "multi" else 0
        self._assembler = Assembler(augment, False, width, decoder)
        self._numbering = Numbering(corpus.counts)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches; their positions are the samples' numbers in the corpus."""
        plans, threads = self._plans(), self._threads
        return made_ahead(plans, threads=threads, ahead=_PREFETCH, meanwhile=self._meanwhile)

    def _plans(self) -> Iterator[_PendingBatch]:
        unannounced, last = (self._numbering.place(sample)[0] for sample in (self._first, self._end - 1))
        for begin in range(self._first, self._end, self._batch):
            soon = min(self._numbering.place(begin)[0] + _AHEAD_SHARDS, last)
            if soon >= unannounced:
                self._corpus.prepare(list(range(unannounced, soon + 1)))
                unannounced = soon + 1
            samples = np.arange(begin, min(begin + self._batch, self._end), dtype=np.int64)
            count = len(samples)
            yield _PendingBatch(
                loader=self,
                samples=samples,
                images=self._assembler.empty_images(count),
                labels=self._assembler.label_array(count),
                good=np.ones(count, dtype=np.bool_),
            )

    def _fill(self, batch: _PendingBatch, begin: int, end: int) -> None:
        rows: list[int] = []
        records: list[Record] = []
        for row in range(begin, end):
            shard, index = self._numbering.place(int(batch.samples[row]))
            try:
                records.append(self._corpus.read(shard, index))
                rows.append(row)
            except BadSampleError as error:
                self._leave_out(batch, row, str(error))
        if not rows:
            return
        pixels = np.empty((len(rows), *batch.images.shape[1:]), dtype=np.uint8)
        verdicts = self._assembler.decode(records, batch.samples[rows], pixels)
        batch.images.numpy()[rows] = pixels
        for row, record, verdict in zip(rows, records, verdicts, strict=True):
            if verdict is None:
                self._assembler.put_label(batch.labels, row, record)
            else:
                self._leave_out(batch, row, str(verdict))

    def _leave_out(self, batch: _PendingBatch, row: int, reason: str) -> None:
        sample = int(batch.samples[row])
        batch.good[row] = False
        batch.bad.append(BadSample(sample, self._corpus.name(*self._numbering.place(sample)), reason))


@dataclass
class _PendingBatch:
    """An evaluation batch under way."""

    loader: EvaluateLoader
    samples: NDArray[np.int64]
    images: torch.Tensor
    labels: NDArray[np.generic]
    good: NDArray[np.bool_]
    bad: list[BadSample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def fill(self, begin: int, end: int) -> None:
        self.loader._fill(self, begin, end)

    def finish(self) -> Batch:
        images, labels, samples = self.images, torch.from_numpy(self.labels), torch.from_numpy(self.samples)
        if self.bad:
            kept = torch.from_numpy(self.good)
            images, labels, samples = images[kept], labels[kept], samples[kept]
        return Batch(images, labels, samples, samples, sorted(self.bad, key=lambda sample: sample.position))
