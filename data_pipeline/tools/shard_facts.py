"""What a corpus of shards holds, from its manifest and indexes alone; no image is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.corpus import Corpus
from data_pipeline.index import FORMATS, Flag

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def shard_facts(corpus: Corpus) -> dict[str, Any]:
    """Count samples, bytes, classes, formats and oddities, and describe the sizes.

    Raises:
        BadSampleError: an index is gone or damaged.
    """
    manifest = corpus.manifest
    indexes = [corpus.index(shard) for shard in range(len(manifest.shards))]
    samples = np.concatenate([index.samples for index in indexes])
    if corpus.label_kind == "multi":
        labels = np.concatenate([index.labels["label"] for index in indexes if index.labels is not None])
    else:
        labels = samples["label"]
    histogram = np.bincount(labels, minlength=len(corpus.classes))
    formats = np.bincount(samples["format"], minlength=len(FORMATS))
    return {
        "samples": corpus.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "digest": corpus.digest,
        "label_kind": corpus.label_kind,
        "classes": {name: int(count) for name, count in zip(corpus.classes, histogram, strict=True)},
        "formats": {name: int(count) for name, count in zip(FORMATS, formats, strict=True) if count},
        "odd": {str(flag.name).lower(): _flagged(samples["flags"], flag) for flag in Flag},
        "oriented": int(np.count_nonzero(samples["orientation"] != 1)),
        "image_bytes": _quantiles(samples["image_bytes"]),
        "width": _quantiles(samples["width"]),
        "height": _quantiles(samples["height"]),
        "source": manifest.source,
        "counts": manifest.counts,
    }


def _flagged(flags: np.ndarray, flag: Flag) -> int:
    return int(np.count_nonzero(flags & flag))


def _quantiles(values: np.ndarray) -> dict[str, int]:
    names = ("least", "5 %", "median", "95 %", "greatest")
    return {name: int(value) for name, value in zip(names, np.quantile(values, _QUANTILES), strict=True)}
