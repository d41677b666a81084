"""The data commands. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from data_pipeline.corpus import Corpus
    from data_pipeline.manifest import Manifest
    from data_pipeline.tools.verify import Problem

_ONE = {"shards": "shard", "classes": "class", "duplicates": "duplicate"}  # the other counts have no plural
_NAMED = 5
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_Corpus = Annotated[str, typer.Argument(help="Folder of shards or of classes, or a URL.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def shard(
    source: Annotated[
        Path, typer.Argument(help="Folder of classes, table (.csv .jsonl .parquet), tar, or folder of tars.")
    ],
    destination: Annotated[
        Path | None, typer.Argument(help="Folder for the shards; none with --in-place.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Approximate size of a shard.")] = "128 MB",
    shard_samples: Annotated[int | None, typer.Option(help="Samples per shard, instead of a size.")] = None,
    validation: Annotated[
        float, typer.Option(help="Share to hold out, into DESTINATION/validation beside /train.")
    ] = 0.0,
    shuffle: Annotated[bool, typer.Option(help="Write in one global random order.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of that order.")] = 0,
    check: Annotated[str, typer.Option(help="Check each image by decode, or header only.")] = "decode",
    deduplicate: Annotated[bool, typer.Option(help="Keep one of several images of equal bytes.")] = False,
    tile_jpeg: Annotated[
        bool, typer.Option("--tile-jpeg", help="Rewrite JPEGs losslessly for decoding by region.")
    ] = False,
    bad_budget: Annotated[float, typer.Option(help="Largest share of images that may be skipped.")] = 0.01,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="KIND=ACTION for odd images, such as cmyk=convert; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 for one per core.")] = 0,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Index existing tars where they lie; no byte changes.")
    ] = False,
    classes: Annotated[Path | None, typer.Option(help="File of class names, one per line.")] = None,
    hierarchy: Annotated[
        Path | None, typer.Option(help="File of lines `parent child`, as WordNet's is-a file.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that a table's paths are relative to.")] = None,
    only: Annotated[str, typer.Option(help="Of tars, only members whose name begins with this.")] = "",
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Several labels per image, even if each has just one.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Pack images into WebDataset shards with index, checksums and manifest; goes on after an interruption.

    Example: coatnet shard photos/train shards/train

    Example: coatnet shard others/tars --in-place
    """
    from coatnet.config import UserError
    from coatnet.config.checks import folder_to_write, no_url
    from data_pipeline.config import parse_bytes
    from data_pipeline.sharding.in_place import index_in_place
    from data_pipeline.sharding.options import OddPolicy, ShardOptions
    from data_pipeline.sharding.sharder import shard_corpus
    from data_pipeline.sharding.sources import SourceOptions

    if in_place == (destination is not None):
        raise UserError("coatnet shard: give a DESTINATION, or --in-place without one")
    try:
        no_url("SOURCE", source)
        folder_to_write("DESTINATION", destination)
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
            policy=OddPolicy.parse(policy or []),
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"coatnet shard: {error}") from None
    understood = SourceOptions(
        classes=classes, hierarchy=hierarchy, root=root, only=only, multi_label=multi_label
    )
    if destination is None:
        made = {"all": index_in_place(source, options=options, source_options=understood, quiet=as_json)}
    else:
        made = shard_corpus(source, destination, options=options, source_options=understood, quiet=as_json)
    _tell_sharded(destination or source, made, as_json=as_json)


def _tell_sharded(place: Path, made: dict[str, Manifest], *, as_json: bool) -> None:
    """Say what was written, and what is odd about it."""
    from coatnet.config.plain_text import number_of
    from data_pipeline.corpus import Corpus

    facts = {
        split: {"shards": len(one.shards), "classes": len(one.classes), **one.counts}
        for split, one in made.items()
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for split, counts in facts.items():
        folder = place if split == "all" else place / split
        numbers = (number_of(count, _ONE.get(what, what), several=what) for what, count in counts.items())
        labels = "one label" if made[split].label_kind == "single" else "several labels"
        print(f"{folder}: {', '.join(numbers)}; {labels} per image")
        if counts["odd"]:
            print(f"  odd images are named in {folder / 'report.jsonl'}")
        found = Corpus.open(folder).class_counts() if counts["skipped"] else ()
        if empty := [name for name, count in zip(made[split].classes, found, strict=False) if not count]:
            named = ", ".join(empty[:_NAMED]) + (", …" if len(empty) > _NAMED else "")
            print(f"  {number_of(len(empty), 'class has', several='classes have')} no image: {named}")


def preview(
    corpus: _Corpus,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("preview.png"),
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 24,
    columns: Annotated[int, typer.Option(min=1, help="How many side by side.")] = 8,
    seed: Annotated[int, typer.Option(help="Which images.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Augmentation, as in a config: image_size=160 mixup=0.8")
    ] = None,
) -> None:
    """Draw a contact sheet: images with labels, each plain and, below, as augmented.

    Example: coatnet preview shards/train image_size=160 randaugment_n=2
    """
    from coatnet.config.checks import file_to_write

    file_to_write(output, endings=_PICTURES)
    from coatnet.config import load_config
    from coatnet.runtime.whole_files import whole_file
    from data_pipeline.augment_config import AugmentConfig
    from data_pipeline.open_corpus import open_corpus

    augment = load_config(AugmentConfig, overrides=overrides or [])
    opened = open_corpus(corpus)
    from data_pipeline.tools.contact_sheet import contact_sheet  # loads torch

    sheet = contact_sheet(opened, augment, images=images, columns=columns, seed=seed)
    with whole_file(output) as temporary:
        sheet.save(temporary)
    print(f"{output}: {sheet.width}×{sheet.height} pixels")


def inspect_shards(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every byte, compare index and tar.")] = False,
    lint: Annotated[bool, typer.Option("--lint", help="Decode every image.")] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads for --verify and --lint; 0: one per core.")
    ] = 0,
    export: Annotated[
        str | None, typer.Option(help="Write an index for wids or dali beside the shards.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Count samples, bytes, classes and odd images; check them. Exits with 1 when something is damaged.

    Example: coatnet inspect shards shards/train --verify --lint
    """
    from coatnet.config import UserError
    from coatnet.config.checks import no_url
    from data_pipeline.corpus import Corpus
    from data_pipeline.tools.exports import export_index
    from data_pipeline.tools.tables import print_problems, print_shard_facts

    try:
        no_url("FOLDER", folder)
    except ValueError as error:
        raise UserError(f"coatnet inspect shards: {error}") from None
    corpus = Corpus.open(folder)
    if export is not None:
        try:
            written = export_index(corpus, folder, export)
        except ValueError as error:
            raise UserError(f"coatnet inspect shards --export {error}") from None
        if not as_json:
            print(f"{folder}: {written[0].name}{f' to {written[-1].name}' if len(written) > 1 else ''}")
    facts, problems = _examine(corpus, folder, verify=verify, lint=lint, threads=threads, quiet=as_json)
    if as_json:
        print(json.dumps({**facts, "problems": [vars(problem) for problem in problems]}, indent=2))
    else:
        print_shard_facts(facts)
        print_problems(problems, checked=verify or lint)
    if problems:
        raise typer.Exit(1)


def _examine(
    corpus: Corpus, folder: Path, *, verify: bool, lint: bool, threads: int, quiet: bool
) -> tuple[dict[str, Any], list[Problem]]:
    """Count what a corpus holds, and find what is wrong with it; `threads` is 0 for one per core.

    Raises:
        UserError: it cannot be counted, and nothing was asked for that would say why.
    """
    import os

    from coatnet.config import UserError
    from coatnet.runtime.progress import progress
    from data_pipeline.record import BadSampleError
    from data_pipeline.tools.shard_facts import shard_facts
    from data_pipeline.tools.verify import lint_images, verify_shards

    threads = threads or len(os.sched_getaffinity(0))
    problems: list[Problem] = []
    if verify:
        with progress(corpus.samples, "verify", "samples", enabled=not quiet) as bar:
            problems += verify_shards(corpus, folder, threads=threads, done=bar.advance)
    if lint:
        with progress(corpus.samples, "lint", "images", enabled=not quiet) as bar:
            problems += lint_images(corpus, threads=threads, done=bar.advance)
    try:
        with progress(corpus.samples, "count", "samples", enabled=not quiet) as bar:
            return shard_facts(corpus, done=bar.advance), problems
    except BadSampleError as error:
        if not problems:
            raise UserError(f"{error}; `--verify` names all that is damaged") from None
        return {"samples": corpus.samples, "shards": len(corpus.manifest.shards)}, problems


def inspect_order(
    corpus: _Corpus,
    world_sizes: Annotated[str, typer.Option(help="Numbers of ranks, separated by commas.")] = "1,2,4,8",
    global_batch: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 64,
    seed: Annotated[int, typer.Option(help="The run's seed.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Which epoch.")] = 0,
    show_steps: Annotated[
        int, typer.Option(min=0, help="List the shards of each rank in the first steps.")
    ] = 0,
    as_json: _Json = False,
) -> None:
    """Prove that an epoch reads every sample exactly once at each world size; show who reads which shard.

    Example: coatnet inspect order shards/train --world-sizes 1,2,3,24 \\
    --global-batch 4080
    """
    from coatnet.config import UserError
    from coatnet.runtime.progress import progress
    from data_pipeline.open_corpus import open_corpus
    from data_pipeline.tools.order_proof import prove_order
    from data_pipeline.tools.tables import print_order

    sizes = _counts(world_sizes, option="--world-sizes")
    if any(global_batch % size for size in sizes):
        raise UserError(
            f"--world-sizes is {world_sizes!r}; allowed: divisors of the global batch, {global_batch}"
        )
    opened = open_corpus(corpus)
    with progress(opened.samples * len(sizes), "prove", "positions", enabled=not as_json) as bar:
        proof = prove_order(
            opened,
            global_batch=global_batch,
            world_sizes=sizes,
            seed=seed,
            epoch=epoch,
            show_steps=show_steps,
            done=bar.advance,
        )
    if as_json:
        print(json.dumps(proof, indent=2))
    else:
        print_order(proof)
    if not proof["exactly_once"]:
        raise typer.Exit(1)


def inspect_throughput(
    corpus: _Corpus,
    needs: Annotated[
        float | None, typer.Option(help="Images per second that the model needs on this machine.")
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of threads to try, separated by commas.")] = "1,2",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per number of threads.")] = 3.0,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Augmentation, as in a config: image_size=160")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Measure the loader on this machine: X images/s, so a model that needs Y is held back by Z %.

    Example: coatnet inspect throughput shards/train --needs 3000 --threads 4,8
    """
    from coatnet.config import load_config
    from data_pipeline.augment_config import AugmentConfig
    from data_pipeline.config import DataConfig
    from data_pipeline.open_corpus import open_corpus
    from data_pipeline.tools.tables import print_throughput

    augment = load_config(AugmentConfig, overrides=overrides or [])
    counts, opened = _counts(threads, option="--threads"), open_corpus(corpus)
    from data_pipeline.tools.throughput import measure_throughput  # loads torch

    rows = measure_throughput(opened, DataConfig(), augment, seconds=seconds, thread_counts=counts)
    for row in rows:
        if needs is not None:
            row["held_back_percent"] = max(0.0, 100 * (1 - row["images_per_second"] / needs))
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_throughput(rows, needs=needs)


def _counts(text: str, *, option: str) -> list[int]:
    from coatnet.config import UserError

    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UserError(f"{option} is {text!r}; allowed: numbers from 1 on, with commas, such as 1,2,8")
    return counts
