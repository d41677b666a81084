"""Index and manifest for tars that others wrote: beside them, and their bytes untouched."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from coatnet.config import UserError
from coatnet.runtime.progress import progress
from coatnet.runtime.run_directory import keep_shards_out
from data_pipeline.index import size_and_hash
from data_pipeline.manifest import Manifest, ShardEntry
from data_pipeline.sharding.collecting import make_corpus
from data_pipeline.sharding.commit import disk_errors
from data_pipeline.sharding.index_rows import IndexRows
from data_pipeline.sharding.inspection import judge
from data_pipeline.sharding.job import Oddity, ShardResult
from data_pipeline.sharding.listing import Label, Listing
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.payloads import Payloads
from data_pipeline.sharding.plan import IN_PLACE, plan_name
from data_pipeline.sharding.sources import SourceOptions, list_source
from data_pipeline.sharding.tar_source import TarSample, tars_in, walk_samples
from data_pipeline.tar_format import walk_members

_MOST_RECORD_BYTES = (1 << 32) - 1
_WHAT_COUNTS = ("check", "policy")  # of the options, where no shard is written


def index_in_place(
    folder: Path | str,
    *,
    options: ShardOptions | None = None,
    source_options: SourceOptions | None = None,
    quiet: bool = False,
) -> Manifest:
    """Index a folder of tars where they lie; goes on after an interruption as sharding does.

    Raises:
        UserError: a tar is damaged, a sample has no label, or too many images are bad.
    """
    options, source_options = options or ShardOptions(), source_options or SourceOptions()
    if options.tile_jpeg or options.validation or options.deduplicate or source_options.root is not None:
        raise UserError(
            "--in-place moves nothing; --tile-jpeg, --validation, --deduplicate and --root need a DESTINATION"
        )
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of tars")
    keep_shards_out(folder)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):  # told before hours of listing
        raise UserError(
            f"{folder}: takes no files from you, where --in-place writes the index; give a DESTINATION"
        )
    tars = tars_in(folder)
    if not tars:
        raise UserError(f"{folder}: holds no tars (*.tar)")
    _check_names(tars)
    with disk_errors(folder):
        with progress(None, f"list {folder.name}", "images", enabled=not quiet) as bar:
            listing = list_source(folder, source_options, payloads=Payloads(folder), done=bar.advance)
        multi = listing.label_kind == "multi"
        judged_by = {name: value for name, value in options.what_counts().items() if name in _WHAT_COUNTS}

        def job_of(number: int) -> Callable[[], ShardResult]:
            labels = _labels_of(listing, number)
            return partial(index_tar, Path(listing.files[number]), labels, options=options, multi=multi)

        return make_corpus(
            folder,
            listing,
            [Path(tar).name for tar in listing.files],
            job_of,
            options=options,
            plan=f"{IN_PLACE}{plan_name(listing, np.arange(len(listing)), judged_by)}",
            source={"in_place": True},
            images=len(listing),
            label=f"index {folder.name}",
            quiet=quiet,
        )


def index_tar(path: Path, labels: dict[int, Label], *, options: ShardOptions, multi: bool) -> ShardResult:
    """Index one tar, of which `labels` has the label of the image at each byte offset.

    Raises:
        UserError: an image lies in a tar within it, or would have to be converted.
        TarError: it is damaged.
        OSError: it cannot be read, or its index not be written.
    """
    index = IndexRows(multi=multi)
    odd: list[Oddity] = []
    found = 0
    with path.open("rb") as file:
        for sample in walk_samples(walk_members(path)):
            image = sample.image
            if image is None or image.data not in labels:
                continue
            found += 1
            record = _read_record(file, sample, name=image.name)
            at = image.data - sample.start
            judged = judge(record[at : at + image.size], name=image.name, options=options)
            if judged.action == "convert":
                raise UserError(
                    f"{image.name}: policy convert would change a tar that stays in place; re-pack it"
                )
            if judged.kinds:
                odd.append(Oddity(image.name, list(judged.kinds), judged.action, judged.detail))
            if judged.info is not None:
                label, checksum = labels[image.data], xxhash.xxh3_64_intdigest(record)
                index.add(
                    judged, label, offset=sample.start, checksum=checksum, size=len(record), image_at=at
                )
    if found < len(labels):
        raise UserError(
            f"{path}: {len(labels) - found} of {len(labels)} images lie in tars within tars, which cannot be "
            "read where they are; give a DESTINATION to pack them anew"
        )
    hashes = index.write(path)
    return ShardResult(ShardEntry(path.name, len(index), *size_and_hash(path), *hashes), odd)


def _read_record(file: BinaryIO, sample: TarSample, *, name: str) -> bytes:
    """Read a sample's members, with what lies between them.

    Raises:
        UserError: they take more than an index can hold.
    """
    size = sample.end - sample.start
    if size > _MOST_RECORD_BYTES:
        raise UserError(
            f"{file.name}: what belongs to {name} takes more than 4 GiB; give a DESTINATION to pack the "
            "images alone"
        )
    file.seek(sample.start)
    return file.read(size)


def _check_names(tars: Sequence[Path]) -> None:
    """Check the names of tars before hours of work.

    Raises:
        UserError: a manifest cannot hold one.
    """
    for tar in tars:
        try:
            ShardEntry(tar.name, samples=0, bytes=0, xxh3="", index_xxh3="")
        except ValueError as error:
            raise UserError(f"{tar}: {error}; rename it") from None


def _labels_of(listing: Listing, tar: int) -> dict[int, Label]:
    begin, end = np.searchsorted(listing.file, [tar, tar + 1])  # listed tar by tar
    return {item.offset: item.label for item in listing.items(np.arange(begin, end))}
