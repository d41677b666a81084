"""Checks every byte of a corpus of shards against its manifest, and its images by decoding them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.corpus import Corpus
from data_pipeline.decode import check_image
from data_pipeline.index import ShardIndex, size_and_hash
from data_pipeline.manifest import ShardEntry
from data_pipeline.record import BadSampleError
from data_pipeline.sharding.tar_source import walk_samples
from data_pipeline.tar_format import TarError, walk_members


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written; `sample` is None where it concerns the shard.

    Attributes:
        name: the sample's key in the tar, empty where that cannot be read.
    """

    shard: str
    sample: int | None
    what: str
    name: str = ""


def verify_shards(
    corpus: Corpus, folder: Path, *, threads: int, done: Callable[[int], None]
) -> list[Problem]:
    """Re-hash every shard and compare its tar with the index, record by record; name tars that are none."""
    problems = _over_shards(corpus, partial(_verify_shard, corpus, folder), threads=threads, done=done)
    tars = {path.name for path in folder.iterdir() if path.suffix.lower() == ".tar"}
    unknown = sorted(tars.difference(entry.name for entry in corpus.manifest.shards))
    return problems + [Problem(name, None, "is not in the manifest: nothing reads it") for name in unknown]


def lint_images(corpus: Corpus, *, threads: int, done: Callable[[int], None]) -> list[Problem]:
    """Decode every image; those that decode with damage are problems too."""
    return _over_shards(corpus, partial(_lint_shard, corpus), threads=threads, done=done)


def _over_shards(
    corpus: Corpus, work: Callable[[int], list[Problem]], *, threads: int, done: Callable[[int], None]
) -> list[Problem]:
    problems: list[Problem] = []
    with ThreadPoolExecutor(threads) as pool:
        shards = range(len(corpus.manifest.shards))
        for shard, found in zip(shards, pool.map(work, shards), strict=True):
            problems += found
            done(int(corpus.counts[shard]))
    return problems


def _verify_shard(corpus: Corpus, folder: Path, shard: int) -> list[Problem]:
    entry = corpus.manifest.shards[shard]
    path = folder / entry.name
    try:
        index = corpus.load_index(shard)
        size, xxh3 = size_and_hash(path)
        members = list(walk_members(path))
    except (BadSampleError, TarError) as error:
        return [Problem(entry.name, None, str(error)), *_bad_records(corpus, shard)]
    except OSError as error:
        return [Problem(entry.name, None, str(error.strerror))]
    problems = []
    if (size, xxh3) != (entry.bytes, entry.xxh3):
        problems.append(
            Problem(entry.name, None, f"its {size} bytes hash to {xxh3}, the manifest says {entry.xxh3}")
        )
        problems += _bad_records(corpus, shard)
    problems += _compare(entry, index, {member.data: member.size for member in members})
    images = sum(sample.image is not None for sample in walk_samples(iter(members)))
    may_skip = corpus.manifest.source.get("in_place", False)  # what was skipped there stays in the tar
    if images < entry.samples or (images > entry.samples and not may_skip):
        problems.append(
            Problem(entry.name, None, f"holds {images} images, its index {entry.samples} samples")
        )
    return problems


def _compare(entry: ShardEntry, index: ShardIndex, sizes: dict[int, int]) -> Iterator[Problem]:
    """Compare the index with what the tar's headers say."""
    for number, sample in enumerate(index.samples):
        at = int(sample["offset"]) + int(sample["image_at"])
        if sizes.get(at) != int(sample["image_bytes"]):
            yield Problem(entry.name, number, f"no member of {sample['image_bytes']} bytes at byte {at}")


def _bad_records(corpus: Corpus, shard: int) -> list[Problem]:
    """Name the samples that a damaged shard has lost; none where it is refused as a whole."""
    entry = corpus.manifest.shards[shard]
    reasons: dict[int, str] = {}
    for number in range(entry.samples):
        try:
            corpus.read(shard, number)
        except BadSampleError as error:
            reasons[number] = str(error)
    if len(reasons) == entry.samples and len(set(reasons.values())) == 1:
        return []
    return [Problem(entry.name, number, reason) for number, reason in reasons.items()]


def _lint_shard(corpus: Corpus, shard: int) -> list[Problem]:
    entry = corpus.manifest.shards[shard]
    problems = []
    for number in range(entry.samples):
        try:
            verdict: Exception | None = check_image(corpus.read(shard, number).payload)
        except BadSampleError as error:
            verdict = error
        if verdict is not None:
            _, _, name = corpus.name(shard, number).partition(" ")
            problems.append(Problem(entry.name, number, str(verdict), name))
    return problems
