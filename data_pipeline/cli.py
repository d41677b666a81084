"""The data commands. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def shard(
    source: Annotated[Path, typer.Argument(help="Folder of classes: SOURCE/CLASS/image.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    shard_size: Annotated[str, typer.Option(help="Size of a shard, about.")] = "128 MB",
    shard_samples: Annotated[
        int | None, typer.Option(help="Samples of a shard, instead of its size.")
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share to hold out, into DESTINATION/validation beside /train.")
    ] = 0.0,
    shuffle: Annotated[bool, typer.Option(help="Write in one global random order.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of that order.")] = 0,
    check: Annotated[str, typer.Option(help="Look at each image by decode, or header only.")] = "decode",
    deduplicate: Annotated[bool, typer.Option(help="Keep one of several images of equal bytes.")] = False,
    tile_jpeg: Annotated[
        bool, typer.Option("--tile-jpeg", help="Rewrite JPEGs losslessly for decoding by region.")
    ] = False,
    bad_budget: Annotated[float, typer.Option(help="Share of images that may be skipped.")] = 0.01,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="KIND=ACTION for odd images, such as cmyk=convert; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 for one per core.")] = 0,
    as_json: _Json = False,
) -> None:
    """Pack images into WebDataset shards with index, checksums and manifest; goes on after an interruption.

    Example: coatnet shard photos/train shards/train
    """
    from coatnet.config import UserError
    from data_pipeline.config import parse_bytes
    from data_pipeline.sharding.options import OddPolicy, ShardOptions
    from data_pipeline.sharding.sharder import shard_corpus

    try:
        options = ShardOptions(
            shard_bytes=parse_bytes(shard_size),
            shard_samples=shard_samples,
            shuffle=shuffle,
            seed=seed,
            check=check,
            validation=validation,
            deduplicate=deduplicate,
            tile_jpeg=tile_jpeg,
            bad_budget=bad_budget,
            workers=workers,
            policy=OddPolicy(**dict(_pair(item) for item in policy or [])),
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"coatnet shard: {error}") from None
    manifests = shard_corpus(source, destination, options=options, quiet=as_json)
    summary = {
        split: {"shards": len(made.shards), "classes": len(made.classes), **made.counts}
        for split, made in manifests.items()
    }
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    for split, facts in summary.items():
        folder = destination if split == "all" else destination / split
        numbers = ", ".join(f"{count:,} {what}" for what, count in facts.items())
        print(f"{folder}: {numbers}")
        if facts["odd"]:
            print(f"  odd images are named in {folder / 'report.jsonl'}")


def _pair(item: str) -> tuple[str, str]:
    kind, equals, action = item.partition("=")
    if not equals:
        raise ValueError(f"policy {item!r}: expected KIND=ACTION, such as cmyk=convert")
    return kind, action
