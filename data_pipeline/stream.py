"""The batches of a run that may change its global batch or image size, and jump back. Knows no model."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from coatnet.runtime.account import TimeAccount
from coatnet.runtime.data_wait import FETCHES, WAITS
from coatnet.runtime.ranks import Ranks
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.corpus import Corpus
from data_pipeline.loader import TrainLoader
from data_pipeline.record import SampleSource
from data_pipeline.remote.address import is_url
from data_pipeline.remote.remote_files import open_cache
from data_pipeline.remote.room import too_small


class Phase(Protocol):
    """A stretch of the run up to sample `end`."""

    @property
    def end(self) -> int: ...
    @property
    def global_batch(self) -> int: ...
    @property
    def image_size(self) -> int: ...


class Position(Protocol):
    """Where the run stands; whoever holds it moves it."""

    samples_seen: int


class Stream:
    """Yields the batch at `position.samples_seen`, wherever that has gone since the last one.

    Args:
        corpora: the training mixture, in the config's order.
        config: a root schema with the sections data and augment, and a seed.
        phases: stretches of one global batch and image size.
        ranks, account: of the run.
    """

    def __init__(
        self,
        corpora: Sequence[SampleSource],
        config: Any,
        *,
        phases: Sequence[Phase],
        ranks: Ranks,
        account: TimeAccount,
    ) -> None:
        self._corpora, self._seed = corpora, config.seed
        self._data: DataConfig = config.data
        self._augment: AugmentConfig = config.augment
        self._phases, self._ranks, self._account = phases, ranks, account
        self._excluded: Counter[int] = Counter()
        if ranks.is_main:
            self._look_at_cache()

    def follow(self, position: Position, *, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Batch]:
        """Yield batches until the run's end; the loop advances the position or sets it back in between.

        `meanwhile` is called every so often while one does not come, and may raise.
        """
        while position.samples_seen < self._phases[-1].end:
            phase = next(phase for phase in self._phases if position.samples_seen < phase.end)
            batches = self._loader(phase).from_sample(position.samples_seen, meanwhile=meanwhile)
            expected, excluded = position.samples_seen, self._excluded.total()
            try:
                while position.samples_seen == expected < phase.end and excluded == self._excluded.total():
                    with self._account.measure("data_wait"):
                        batch = next(batches)
                    yield batch
                    expected += batch.step_samples(self._ranks.world_size)
            finally:
                batches.close()

    def blank(self, *, image_size: int, samples: int) -> Batch:
        """Return a batch of black images, for a step that nobody takes."""
        return Batch.blank(image_size=image_size, samples=samples)

    def excuses(self) -> dict[str, str]:
        """Return what there is to say of data that do not come; from any thread."""
        found: dict[str, str] = {}
        for corpus in self._corpora:
            if name := corpus.fetching:
                found.setdefault(FETCHES, name)
        if self._account.counting == "data_wait":
            found[WAITS] = f"rank {self._ranks.rank} waits for its batch"
        return found

    def _look_at_cache(self) -> None:
        remote = [
            corpus.manifest.shards
            for entry, corpus in zip(self._data.train, self._corpora, strict=True)
            if is_url(entry.path) and isinstance(corpus, Corpus)
        ]
        if not remote:
            return
        share = self._ranks.local_world_size / self._ranks.world_size
        if warning := too_small(open_cache(self._data.cache), remote, self._data, node_share=share):
            print(warning, file=sys.stderr, flush=True)

    def exclude(self, positions: Sequence[int]) -> None:
        """Replace the samples at these positions from now on, or what has replaced them."""
        self._excluded.update(positions)

    def next_excluded(self, position: int) -> float:
        """Return the first excluded position from another on; infinite where none is left."""
        return min((one for one in self._excluded if one >= position), default=math.inf)

    def name(self, position: int) -> str:
        """Name the sample at a position, for people."""
        return self._loader(self._phases[0]).name(position)

    def state(self) -> dict[str, Any]:
        """Return what identifies the order of samples."""
        return self._loader(self._phases[0]).state()

    def check(self, saved: dict[str, Any]) -> None:
        """Make sure that a checkpoint's order of samples is this one, and take over its exclusions.

        Raises:
            UserError: it is another one, so that the run could not go on exactly.
        """
        loader = self._loader(self._phases[0])
        loader.restore(saved)
        self._excluded = loader.excluded

    def _loader(self, phase: Phase) -> TrainLoader:
        loader = TrainLoader(
            self._corpora,
            self._data,
            replace(self._augment, image_size=phase.image_size),
            seed=self._seed,
            global_batch=phase.global_batch,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
        )
        loader.exclude(self._excluded.elements())
        return loader
