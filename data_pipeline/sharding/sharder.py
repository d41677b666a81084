"""Shards a source: lists it, plans, writes shards in parallel, commits by the manifest.

Killed at any moment, the same call goes on: finished shards stay, nothing doubles. Knows no training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coatnet.config import UserError
from coatnet.runtime.progress import progress
from coatnet.runtime.run_directory import keep_shards_out
from data_pipeline.decode import kernel
from data_pipeline.folder import keep_out
from data_pipeline.manifest import Manifest
from data_pipeline.sharding.collecting import make_corpus
from data_pipeline.sharding.commit import disk_errors
from data_pipeline.sharding.duplicates import of_equal_size, without_duplicates
from data_pipeline.sharding.job import Oddity, ShardResult, write_shard
from data_pipeline.sharding.listing import Listing
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.payloads import Payloads
from data_pipeline.sharding.plan import plan_name, plan_shards, split_validation
from data_pipeline.sharding.sources import SourceOptions, list_source

_SHARD_NAME = re.compile(r"shard-[0-9]{6,}\.tar")


def shard_corpus(
    source: Path | str,
    destination: Path | str,
    *,
    options: ShardOptions | None = None,
    source_options: SourceOptions | None = None,
    quiet: bool = False,
) -> dict[str, Manifest]:
    """Shard a source into a folder, or into `train` and `validation` below it when a share is held out.

    Returns:
        The manifests, by the name of the split ("all", or "train" and "validation").

    Raises:
        UserError: the source is malformed, too many images are bad, the disk is full, or the destination
            holds something else.
    """
    options = options or ShardOptions()
    destination = Path(destination)
    keep_out("DESTINATION", destination, [source])
    keep_shards_out(destination)
    str(source).encode()  # fails, before any work, where the manifest could not name it
    if options.tile_jpeg and not kernel.is_available():
        raise UserError("--tile-jpeg needs the C kernel, which is not built here; see `coatnet doctor`")
    with disk_errors(destination), Payloads(destination) as payloads:
        with progress(None, f"list {Path(source).name}", "images", enabled=not quiet) as bar:
            understood = source_options or SourceOptions()
            listing = list_source(Path(source), understood, payloads=payloads, done=bar.advance)
        chosen, dropped = np.arange(len(listing)), list[Oddity]()
        if options.deduplicate:
            suspects = of_equal_size(listing)
            with progress(len(suspects), "compare", "images", enabled=not quiet) as bar:
                chosen, dropped = without_duplicates(listing, suspects, done=bar.advance)
        made, parts = {}, _split(listing, chosen, destination, options)
        for _, folder in parts.values():
            keep_out("DESTINATION", folder, [source])
            _keep_sources(Path(source), listing, folder)
        for split, (numbers, folder) in parts.items():
            made[split] = _shard_part(listing, numbers, folder, options, dropped, quiet=quiet)
            dropped = []  # told once, by the first of two parts
        return made


def _keep_sources(source: Path, listing: Listing, destination: Path) -> None:
    """Check that no shard comes among the tars that are read, nor in the place of one.

    Raises:
        UserError: one would.
    """
    place = os.path.realpath(destination)
    read = {os.path.split(os.path.realpath(file)) for file in listing.files if file.endswith(".tar")}
    if place == os.path.realpath(source) or any(
        folder == place and _SHARD_NAME.fullmatch(name) for folder, name in read
    ):
        raise UserError(
            f"{destination}: holds the tars that are read; give another DESTINATION, or --in-place to index "
            "them"
        )


def _split(
    listing: Listing, chosen: NDArray[np.int64], destination: Path, options: ShardOptions
) -> dict[str, tuple[NDArray[np.int64], Path]]:
    if options.validation == 0.0:
        return {"all": (chosen, destination)}
    train, validation = split_validation(listing, chosen, options.validation)
    if not len(train) or not len(validation):
        raise UserError(f"--validation {options.validation:g} of {len(chosen)} samples leaves one side empty")
    return {"train": (train, destination / "train"), "validation": (validation, destination / "validation")}


def _shard_part(
    listing: Listing,
    chosen: NDArray[np.int64],
    destination: Path,
    options: ShardOptions,
    dropped: list[Oddity],
    *,
    quiet: bool,
) -> Manifest:
    shards = plan_shards(listing, chosen, options)
    names = [f"shard-{number:06d}.tar" for number in range(len(shards))]
    firsts = np.cumsum([0, *map(len, shards)])
    multi = listing.label_kind == "multi"

    def job_of(number: int) -> Callable[[], ShardResult]:
        items, first = listing.items(shards[number]), int(firsts[number])
        path = destination / names[number]
        return partial(write_shard, path, first=first, items=items, options=options, multi=multi)

    return make_corpus(
        destination,
        listing,
        names,
        job_of,
        options=options,
        plan=plan_name(listing, chosen, options.what_counts()),
        source={"options": options.what_counts()},
        images=len(chosen),
        dropped=dropped,
        label=f"shard {destination.name}",
        quiet=quiet,
    )
