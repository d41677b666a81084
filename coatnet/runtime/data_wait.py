"""Whether no step comes because data do not: what ranks say of it to each other, beside their collectives.

Knows no data: a rank's own words are given. Imports no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from coatnet.runtime.stop import StopFlag

if TYPE_CHECKING:
    from coatnet.runtime.ranks import Ranks

WAITS, FETCHES = "waits", "fetches"
_TOLD = "told to stop"


class DataWait:
    """Hears whether one rank waits for its batch while some rank fetches.

    Only both excuse that no step gets done. They may be two ranks: on a node one fetches a file and the
    others wait for its lock. A rank that waits with nobody fetching hangs, and so do ranks that wait for each
    other while files are fetched ahead. A fetch ends in time by its own bounds.

    A rank that was told to stop says that as well: the one that waits may not have been told, and the others
    would wait for its step.

    Words go through the mailbox in a thread that may hang: who keeps the mailbox may be the rank that does.
    Each word has a number, since who said it may hang by now: one that was there before is no answer.
    """

    def __init__(self, ranks: Ranks, words: Callable[[], Mapping[str, str]], *, stop: StopFlag) -> None:
        """Begin with nothing heard.

        Args:
            ranks: who speaks.
            words: this rank's own, by kind: those that are true now.
            stop: tells that this rank is to stop, and is told so where another one is.
        """
        self._ranks, self._words, self._stop = ranks, words, stop
        self._said = 0
        self._before: dict[str, str | None] = {}
        self._heard: dict[str, str] = {}
        self._thread = threading.Thread()

    @property
    def own(self) -> str:
        """What this rank itself waits for; empty if for nothing."""
        return self._words().get(WAITS, "")

    def forget(self) -> None:
        """Begin anew. An exchange that is under way still writes into what was before."""
        self._before, self._heard = {}, {}

    def excuse(self) -> str | None:
        """Return what excuses the silence since `forget`, if it was heard by now; ask again behind it."""
        heard = dict(self._heard)
        if not self._thread.is_alive():
            notes = (self._before, self._heard)
            self._thread = threading.Thread(target=self._exchange, args=notes, name="data wait", daemon=True)
            self._thread.start()
        return f"{heard[WAITS]}: {heard[FETCHES]}" if len(heard) == 2 else None

    def _exchange(self, before: dict[str, str | None], heard: dict[str, str]) -> None:
        """Say what is true here, and note what others have said since the last time."""
        own = self._words()
        if not self._ranks.distributed:
            heard.update(own)
            return
        self._said += 1
        with suppress(RuntimeError):  # whoever keeps the words is gone
            for kind in (WAITS, FETCHES):
                if kind in own:
                    self._ranks.tell(kind, f"{self._ranks.rank}.{self._said} {own[kind]}")
                word = self._ranks.heard(kind, take=False)
                if word is not None and kind in before and word != before[kind]:
                    heard[kind] = word.partition(" ")[2]
                before[kind] = word
            if self._stop.reason is not None:
                self._ranks.tell(_TOLD, self._stop.reason)
            elif (reason := self._ranks.heard(_TOLD, take=False)) is not None:
                self._stop.request(reason)
