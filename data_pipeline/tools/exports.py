"""The index of a corpus in other libraries' forms."""

from __future__ import annotations

import json

from data_pipeline.corpus import Corpus


def to_wids(corpus: Corpus) -> str:
    """Render the shards as an index of the `wids` library, which reads the same tars by sample number.

    Source: wids 0.1.11, `wids_specs.py`.
    """
    shards = [
        {"url": shard.name, "nsamples": shard.samples, "filesize": shard.bytes}
        for shard in corpus.manifest.shards
    ]
    return json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}, indent=1)
