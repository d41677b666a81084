"""How all ranks leave an evaluation whose images do not come, once they are told to stop. Knows no images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from coatnet.runtime.ranks import Ranks
from coatnet.runtime.stop import Stopped

T = TypeVar("T")
_WORD = "left an evaluation"


class WayOut:
    """Out of evaluations, for all ranks or none: one may have its images while another waits for its own.

    Attributes:
        taken: whether this rank has left; its run ends then.
        breathe: to be called with every batch.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        is_told: Callable[[], bool] = lambda: False,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        """Lead nowhere until `is_told`, which says whether this rank was told to stop."""
        self._ranks, self._is_told, self.breathe = ranks, is_told, breathe
        self.taken = False

    def look(self) -> None:
        """End the wait for a batch.

        Raises:
            Stopped: this rank was told to stop.
        """
        if self._is_told():
            raise Stopped

    def before_the_end_of(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield a rank's batches, whose waiting calls `look`, until this rank or another one leaves."""
        try:
            for batch in batches:
                yield batch
                self.taken = self.taken or self._hears()
                if self.taken:
                    return
        except Stopped:
            self.taken = True
            if self._ranks.distributed:
                self._ranks.tell(_WORD, "")

    def agree(self) -> None:
        """Meet the other ranks behind the batches.

        Raises:
            Stopped: on all of them, where one has left.
        """
        if self._ranks.any(self.taken):
            raise Stopped

    def _hears(self) -> bool:
        """Return whether another rank has left; asks only where this one was told to stop, as all are."""
        told = self._ranks.distributed and self._is_told()
        return told and self._ranks.heard(_WORD, take=False) is not None
