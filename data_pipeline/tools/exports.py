"""The index of a corpus in other libraries' forms; the tars are read by all of them as they are.

Energon is not among them: its own `energon prepare` writes its index, and reads nothing of ours.
"""

from __future__ import annotations

import json
from pathlib import Path

from coatnet.runtime.whole_files import write_whole
from data_pipeline.corpus import Corpus
from data_pipeline.tar_format import walk_members

LIBRARIES = ("wids", "dali")
_WIDS_INDEX = "wids.json"


def export_index(corpus: Corpus, folder: Path, library: str) -> list[Path]:
    """Write a library's index beside the shards, and return the files.

    Raises:
        ValueError: a library that is not known here.
        OSError: a file could not be written.
    """
    if library not in LIBRARIES:
        raise ValueError(f"{library!r}; allowed: {', '.join(LIBRARIES)}")
    if library == "wids":
        found = {folder / _WIDS_INDEX: _wids(corpus).encode()}
    else:
        tars = [folder / shard.name for shard in corpus.manifest.shards]
        found = {tar.with_suffix(".idx"): _dali(tar) for tar in tars}
    for path, content in found.items():
        write_whole(path, content)
    return list(found)


def _wids(corpus: Corpus) -> str:
    """Render the shards as wids knows them.

    Source: wids 0.1.11, `wids_specs.py`.
    """
    shards = [
        {"url": shard.name, "nsamples": shard.samples, "filesize": shard.bytes}
        for shard in corpus.manifest.shards
    ]
    return json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}, indent=1)


def _dali(tar: Path) -> bytes:
    """Render a shard for `nvidia.dali.fn.readers.webdataset(index_paths=…)`: a line per sample.

    Source: DALI 2.4, `wds2idx.py`, version 1.2: extension, offset, size and name of each member of a sample.
    """
    lines: list[str] = []
    last = None
    for member in walk_members(tar):
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        part = f"{extension} {member.data} {member.size} {member.name}"
        if (folder, stem) == last:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
        last = (folder, stem)
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode()
