"""Other libraries' ways to write, read and seek the same samples, each in its own format on the same disk.

Each reader gives raw bytes: nobody decodes. Libraries that are not installed are left out.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from data_pipeline.corpus import Corpus

PACKAGES = (
    *("webdataset", "mosaicml-streaming", "litdata", "megatron-energon", "nvidia-dali-cuda120"),
    *("simplejpeg", "opencv-python-headless", "torchvision", "torch", "pillow", "numpy", "xxhash"),
)
_END_BYTES = 1024


@dataclass(frozen=True)
class Reader:
    """A peer's reader of samples that it holds on disk.

    Attributes:
        read: returns the bytes of sample n; None where there is no random access.
        walk: reads all samples in the library's own order, where a random one is not for it: webdataset has
            no other, and litdata decodes a whole chunk whenever it meets another one.
        walk_to: where `read` is None, reads from the first shard's beginning up to sample n.
    """

    read: Callable[[int], bytes | memoryview] | None = None
    walk: Callable[[], None] | None = None
    walk_to: Callable[[int], None] | None = None


def versions() -> dict[str, str | None]:
    """Return what is installed of the peers; None for what is not."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def writers(folder: Path, paths: list[Path], *, shard_bytes: int) -> dict[str, Callable[[], None]]:
    """Return functions that write the files as samples with a label, reading them from disk."""

    def by_webdataset() -> None:
        pattern = str(_emptied(folder / "webdataset") / "%06d.tar")
        with webdataset.ShardWriter(pattern, maxsize=shard_bytes, verbose=0) as writer:
            for number, path in enumerate(paths):
                writer.write({"__key__": f"{number:09d}", "jpg": path.read_bytes(), "cls": number % 10})

    def by_streaming() -> None:
        write_streaming(_emptied(folder / "streaming"), paths, shard_bytes=shard_bytes)

    def by_litdata() -> None:
        write_litdata(_emptied(folder / "litdata"), paths, shard_bytes=shard_bytes)

    found = {"webdataset": by_webdataset}
    if _installed("mosaicml-streaming"):
        found["mosaicml_streaming"] = by_streaming
    if _installed("litdata"):
        found["litdata"] = by_litdata
    return found


def readers(folder: Path, shards: Path, corpus: Corpus, paths: list[Path]) -> dict[str, Reader]:
    """Return every installed peer's reader, its data laid out in `folder`; tars are read where they are."""
    tars = [str(shards / shard.name) for shard in corpus.manifest.shards]
    found = {"webdataset": _webdataset(tars)}
    makers: dict[str, Callable[[], Reader]] = {
        "wids": lambda: _wids(corpus, shards),
        "mosaicml_streaming": lambda: _streaming(folder / "streaming", paths),
        "litdata": lambda: _litdata(folder / "litdata", paths),
        "energon": lambda: _energon(folder / "energon", shards, corpus),
    }
    for name, make in makers.items():
        try:
            with redirect_stdout(sys.stderr):  # some print while they open
                found[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    return found


def streaming_order(samples: int, samples_per_shard: int, *, seen: int) -> None:
    """Do what mosaicml-streaming does on resume to know an epoch's order: its defaults, 64 ranks."""
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    nodes = 8
    places = get_partitions("relaxed", samples, nodes, nodes, 8, 1, 64, drop_first=seen)
    shards = np.full(samples // samples_per_shard, samples_per_shard)
    shards[-1] += samples - int(shards.sum())
    shuffled = get_shuffle("py1e", shards, nodes, 1, 0, 1 << 18)
    np.where(places != -1, shuffled[places], -1)


def write_streaming(folder: Path, paths: list[Path], *, shard_bytes: int) -> None:
    """Write by MDSWriter, with a hash per shard as ours have."""
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "cls": "int"}
    with MDSWriter(
        out=str(folder), columns=columns, size_limit=shard_bytes, hashes=["xxh3_64"], progress_bar=False
    ) as writer:
        for number, path in enumerate(paths):
            writer.write({"jpg": path.read_bytes(), "cls": number % 10})


def write_litdata(folder: Path, paths: list[Path], *, shard_bytes: int) -> None:
    """Write by litdata's BinaryWriter, what its `optimize` runs in each worker."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=shard_bytes)
    for number, path in enumerate(paths):
        writer.add_item(number, {"jpg": path.read_bytes(), "cls": number % 10})
    writer.done()
    writer.merge()


def _webdataset(tars: list[str]) -> Reader:
    def walk(urls: list[str], count: int | None = None) -> None:
        _exhaust(islice(webdataset.WebDataset(urls, shardshuffle=False), count))

    return Reader(walk=lambda: walk(tars), walk_to=lambda number: walk(tars[:1], number + 1))


def _wids(corpus: Corpus, shards: Path) -> Reader:
    """Open the shards by webdataset's former indexed reader."""
    import wids

    lists = [{"url": str(shards / s.name), "nsamples": s.samples} for s in corpus.manifest.shards]
    dataset: Any = wids.ShardListDataset(lists, transformations=[], keep=True)
    return Reader(read=lambda number: dataset[number][".jpg"].getvalue())


def _streaming(folder: Path, paths: list[Path]) -> Reader:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    write_streaming(_emptied(folder), paths, shard_bytes=100_000_000)
    clean_stale_shared_memory()
    dataset: Any = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return Reader(read=lambda number: dataset[number]["jpg"])


def _litdata(folder: Path, paths: list[Path]) -> Reader:
    import litdata

    write_litdata(_emptied(folder), paths, shard_bytes=100_000_000)
    dataset: Any = litdata.StreamingDataset(str(folder))
    return Reader(read=lambda number: dataset[number]["jpg"], walk=lambda: _exhaust(dataset))


def _energon(folder: Path, shards: Path, corpus: Corpus) -> Reader:
    """Open links to the shards by Energon's indexed reader, beside the index that it wants."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.itar_reader import ShardInfosITarReader
    from megatron.energon.flavors.webdataset.structs import ShardInfo

    _emptied(folder)
    infos = []
    for number, shard in enumerate(corpus.manifest.shards):
        tar = folder / shard.name
        os.link(shards / shard.name, tar)
        offsets = [*corpus.index(number).samples["offset"].tolist(), shard.bytes - _END_BYTES]
        tar.with_suffix(".tar.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
        infos.append(ShardInfo(name=shard.name, path=EPath(str(tar)), count=shard.samples))
    reader: Any = ShardInfosITarReader(EPath(str(folder)), infos)
    return Reader(read=lambda number: reader[number]["jpg"])


def _exhaust(samples: Iterable[object]) -> None:
    for _ in samples:
        pass


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _installed(package: str) -> bool:
    return versions()[package] is not None
