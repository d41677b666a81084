"""What a corpus of shards holds, from its manifest and indexes alone; no image is read.

One shard's index is in memory at a time: a corpus of 300 million samples has 14 GB of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.corpus import Corpus
from data_pipeline.index import FORMATS, Flag

_QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "greatest": 1.0}
_MEASURES = ("image_bytes", "width", "height")
_COUNTED_AT_ONCE = 1 << 20


def shard_facts(corpus: Corpus, *, done: Callable[[int], None]) -> dict[str, Any]:
    """Count samples, bytes, classes, formats and oddities, and describe the sizes.

    Args:
        done: is told how many samples have been looked at, shard by shard.

    Raises:
        BadSampleError: an index is gone or damaged.
    """
    manifest = corpus.manifest
    classes = np.zeros(len(corpus.classes), dtype=np.int64)
    formats = np.zeros(len(FORMATS), dtype=np.int64)
    odd, oriented = dict.fromkeys(Flag, 0), 0
    spreads = {name: Spread() for name in _MEASURES}
    for shard in range(len(manifest.shards)):
        index = corpus.load_index(shard)
        samples = index.samples
        classes += np.bincount(index.all_labels, minlength=len(classes))
        formats += np.bincount(samples["format"], minlength=len(formats))
        for flag in odd:
            odd[flag] += int(np.count_nonzero(samples["flags"] & flag))
        oriented += int(np.count_nonzero(samples["orientation"] != 1))
        for name, spread in spreads.items():
            spread.add(samples[name])
        done(len(samples))
    return {
        "samples": corpus.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "digest": corpus.digest,
        "label_kind": corpus.label_kind,
        "classes": dict(zip(corpus.classes, classes.tolist(), strict=True)),
        "formats": {name: count for name, count in zip(FORMATS, formats.tolist(), strict=True) if count},
        "odd": {str(flag.name).lower(): count for flag, count in odd.items()},
        "oriented": oriented,
        **{name: spread.quantiles() for name, spread in spreads.items()},
        "source": manifest.source,
        "counts": manifest.counts,
    }


class Spread:
    """The quantiles of numbers that come in parts: how often each occurs is kept, not each of them."""

    def __init__(self) -> None:
        self._values = np.zeros(0, dtype=np.int64)
        self._times = np.zeros(0, dtype=np.int64)
        self._new: list[NDArray[np.int64]] = []

    def add(self, values: NDArray[np.integer]) -> None:
        """Take a part."""
        self._new.append(values.astype(np.int64))
        if sum(map(len, self._new)) > _COUNTED_AT_ONCE:
            self._count()

    def quantiles(self) -> dict[str, int]:
        """Return the least, some quantiles by linear interpolation, and the greatest, as whole numbers."""
        self._count()
        ends = np.cumsum(self._times)
        found = {}
        for name, share in _QUANTILES.items():
            below, rest = divmod(share * (int(ends[-1]) - 1), 1)
            low, high = self._values[np.searchsorted(ends, [below, np.ceil(below + rest)], side="right")]
            found[name] = int(low + (high - low) * rest)
        return found

    def _count(self) -> None:
        values, times = np.unique(np.concatenate([np.zeros(0, np.int64), *self._new]), return_counts=True)
        self._new = []
        self._values, where = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        self._times = np.bincount(where, weights=np.concatenate([self._times, times])).astype(np.int64)
