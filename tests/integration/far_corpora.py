"""What tests of remote corpora share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from waiting import PATIENCE_SECONDS

from data_pipeline.config import CacheConfig
from data_pipeline.record import SampleSource

FIRST = "shard-000000.tar"


def cache_config(tmp_path: Path, **changes: Any) -> CacheConfig:
    """Return a cache that takes no slow machine for a stall: a second request would be counted."""
    patience = {"stall_seconds": PATIENCE_SECONDS, "attempts": 3, **changes}
    return CacheConfig(directory=str(tmp_path / "cache"), **patience)


def everything(corpus: SampleSource) -> list[tuple[bytes, int]]:
    records = [corpus.read(s, i) for s, count in enumerate(corpus.counts) for i in range(count)]
    return [(bytes(record.payload), record.label) for record in records]
