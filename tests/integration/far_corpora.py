"""What tests of remote corpora share."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fault_server import FaultServer
from waiting import PATIENCE_SECONDS

from data_pipeline.config import CacheConfig
from data_pipeline.record import SampleSource

FIRST = "shard-000000.tar"


def cache_config(tmp_path: Path, **changes: Any) -> CacheConfig:
    """Return a cache that takes no slow machine for a stall: a second request would be counted."""
    patience = {"stall_seconds": PATIENCE_SECONDS, "attempts": 3, **changes}
    return CacheConfig(directory=str(tmp_path / "cache"), **patience)


class Away(FaultServer):
    """Answers with the manifest and so many shards, and then not at all, until it is back.

    Attributes:
        away: set by the first request without an answer.
    """

    def __init__(self, folder: Path, *, after: int) -> None:
        super().__init__(folder)
        self._after, self._back, self.away = after, False, threading.Event()

    def back(self) -> None:
        self._back = True

    def next_fault(self, name: str, ranged: str | None) -> str:
        fault = super().next_fault(name, ranged)
        if self._back or sum(one.endswith(".tar") for one in self.requests) + 1 <= self._after:
            return fault
        self.away.set()
        return "stall"


def everything(corpus: SampleSource) -> list[tuple[bytes, int]]:
    records = [corpus.read(s, i) for s, count in enumerate(corpus.counts) for i in range(count)]
    return [(bytes(record.payload), record.label) for record in records]
