"""The batches of a run that may change its global batch and jump back. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from coatnet.runtime.account import TimeAccount
from coatnet.runtime.ranks import Ranks
from data_pipeline.batch import Batch
from data_pipeline.loader import TrainLoader
from data_pipeline.record import SampleSource
from pretrain.calendar import Calendar
from pretrain.config import PretrainConfig
from pretrain.state import State


class Stream:
    """Yields the batch at `state.samples_seen`, wherever that has gone since the last one."""

    def __init__(
        self,
        corpora: Sequence[SampleSource],
        config: PretrainConfig,
        *,
        ranks: Ranks,
        calendar: Calendar,
        account: TimeAccount,
    ) -> None:
        self._corpora, self._config, self._ranks = corpora, config, ranks
        self._calendar, self._account = calendar, account
        self._excluded: list[int] = []

    def follow(self, state: State) -> Iterator[Batch]:
        """Yield batches until the run's end; the loop advances the state or sets it back in between."""
        while state.samples_seen < self._calendar.total:
            phase = self._calendar.phase_at(state.samples_seen)
            batches = self._loader(phase.global_batch).from_sample(state.samples_seen)
            expected, excluded = state.samples_seen, len(self._excluded)
            try:
                while state.samples_seen == expected < phase.end and excluded == len(self._excluded):
                    with self._account.measure("data_wait"):
                        batch = next(batches)
                    yield batch
                    expected += phase.global_batch
            finally:
                batches.close()

    def exclude(self, positions: Sequence[int]) -> None:
        """Replace the samples at these positions from now on."""
        self._excluded += positions

    def name(self, position: int) -> str:
        """Name the sample at a position, for people."""
        return self._loader(self._calendar.phases[0].global_batch).name(position)

    def state(self) -> dict[str, Any]:
        """Return what identifies the order of samples."""
        return self._loader(self._calendar.phases[0].global_batch).state()

    def check(self, saved: dict[str, Any]) -> None:
        """Make sure that a checkpoint's order of samples is this one.

        Raises:
            UserError: it is another one, so that the run could not go on exactly.
        """
        loader = self._loader(self._calendar.phases[0].global_batch)
        loader.restore(saved)

    def _loader(self, global_batch: int) -> TrainLoader:
        loader = TrainLoader(
            self._corpora,
            self._config.data,
            self._config.augment,
            seed=self._config.seed,
            global_batch=global_batch,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
        )
        loader.exclude(self._excluded)
        return loader
