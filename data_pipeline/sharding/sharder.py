"""Shards a source: lists it, plans, writes shards in parallel, commits by the manifest.

Killed at any moment, the same call goes on: finished shards stay, nothing doubles. Knows no training.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from coatnet.config import UserError
from coatnet.runtime.progress import Progress, progress
from data_pipeline.manifest import MANIFEST, Manifest, parse_manifest, write_whole
from data_pipeline.sharding.inspection import StopSharding
from data_pipeline.sharding.job import ShardJob, ShardResult, run_job
from data_pipeline.sharding.journal import Journal
from data_pipeline.sharding.listing import Listing
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.plan import plan_shards, split_validation
from data_pipeline.sharding.sources import list_source

REPORT = "report.jsonl"
_FEW_BYTES = 64_000_000  # below, starting worker processes costs more than it saves
_JOBS_PER_WORKER = 2  # submitted ahead: their items are copied to the workers


def shard_corpus(
    source: Path | str, destination: Path | str, *, options: ShardOptions | None = None, quiet: bool = False
) -> dict[str, Manifest]:
    """Shard a source into a folder, or into `train` and `validation` below it when a share is held out.

    Returns:
        The manifests, by the name of the split ("all", or "train" and "validation").

    Raises:
        UserError: the source is malformed, too many images are bad, the disk is full, or the destination
            holds something else.
    """
    options = options or ShardOptions()
    listing = list_source(Path(source))
    if not len(listing):
        raise UserError(f"{source}: holds no samples")
    chosen = np.arange(len(listing))
    if options.validation == 0.0:
        parts = {"all": (chosen, Path(destination))}
    else:
        train, validation = split_validation(listing, chosen, options.validation)
        if not len(train) or not len(validation):
            raise UserError(
                f"validation={options.validation:g} of {len(listing)} samples leaves a side empty"
            )
        parts = {
            "train": (train, Path(destination) / "train"),
            "validation": (validation, Path(destination) / "validation"),
        }
    return {
        split: _shard_part(listing, numbers, folder, options, label=f"shard {split}", quiet=quiet)
        for split, (numbers, folder) in parts.items()
    }


def _shard_part(
    listing: Listing,
    chosen: NDArray[np.int64],
    destination: Path,
    options: ShardOptions,
    *,
    label: str,
    quiet: bool,
) -> Manifest:
    shards = plan_shards(listing, chosen, options)
    plan = _plan_name(listing, chosen, options)
    manifest_file = destination / MANIFEST
    if manifest_file.exists():
        present = parse_manifest(manifest_file.read_text(), origin=str(manifest_file))
        if present.source.get("plan") == plan:
            return present
        raise UserError(
            f"{destination}: holds a corpus of another source or other options; give another folder"
        )
    with _disk_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        with (
            Journal(destination, plan=plan) as journal,
            progress(len(chosen), label, "images", enabled=not quiet) as bar,
        ):
            results = _write_shards(listing, shards, destination, options, journal, bar)
            manifest = _manifest(listing, results, options, plan=plan)
            write_whole(destination / REPORT, _report(results))
            write_whole(manifest_file, manifest.to_json().encode())
            journal.close()
    return manifest


def _write_shards(
    listing: Listing,
    shards: list[NDArray[np.int64]],
    destination: Path,
    options: ShardOptions,
    journal: Journal,
    bar: Progress,
) -> list[ShardResult]:
    """Write what is not yet written, and return all shards' results in their order."""
    results = journal.finished()
    names = [f"shard-{number:06d}.tar" for number in range(len(shards))]
    firsts = np.cumsum([0, *map(len, shards)])
    bar.advance(sum(len(shards[number]) for number, name in enumerate(names) if name in results))
    jobs = (
        ShardJob(
            str(destination / name),
            int(firsts[number]),
            [listing.item(int(sample)) for sample in shards[number]],
            options,
            listing.label_kind == "multi",
        )
        for number, name in enumerate(names)
        if name not in results
    )
    missing = len(names) - len(results)
    small = int(listing.size.sum()) < _FEW_BYTES
    workers = 1 if small else min(options.workers or len(os.sched_getaffinity(0)), missing)
    for result in _run(jobs, workers=workers):
        journal.add(result)
        results[result.entry.name] = result
        bar.advance(result.entry.samples + len(result.skipped))
        _check_budget(results.values(), total=int(firsts[-1]), budget=options.bad_budget)
    return [results[name] for name in names]


def _run(jobs: Iterator[ShardJob], *, workers: int) -> Iterator[ShardResult]:
    """Run jobs in processes, yielding results as they come; in this process if one worker suffices."""
    if workers <= 1:
        yield from map(run_job, jobs)
        return
    # spawn: a fork would inherit the locks of this process' threads
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            running = {pool.submit(run_job, job) for job in islice(jobs, workers * _JOBS_PER_WORKER)}
            while running:
                done = next(as_completed(running))
                running.remove(done)
                running.update(pool.submit(run_job, job) for job in islice(jobs, 1))
                yield done.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died (out of memory?); the same command goes on where it was"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_budget(results: Iterable[ShardResult], *, total: int, budget: float) -> None:
    skipped = [oddity for result in results for oddity in result.skipped]
    if len(skipped) > (max(1.0, budget * total) if budget > 0 else 0.0):
        first = "; ".join(f"{odd.name}: {', '.join(odd.kinds)} {odd.detail}".strip() for odd in skipped[:5])
        raise UserError(
            f"{len(skipped)} of {total} images cannot be used, more than the budget of {budget:g}: {first}. "
            "Mend or remove them, or allow more with --bad-budget"
        )


def _manifest(listing: Listing, results: list[ShardResult], options: ShardOptions, *, plan: str) -> Manifest:
    shards = [result.entry for result in results]
    written = sum(shard.samples for shard in shards)
    if not written:
        raise UserError(f"{listing.root}: none of its files is a usable image")
    skipped = sum(len(result.skipped) for result in results)
    return Manifest(
        classes=listing.classes,
        shards=shards,
        label_kind=listing.label_kind,
        hierarchy=listing.hierarchy,
        source={**listing.source, "options": options.what_counts(), "plan": plan},
        counts={"written": written, "skipped": skipped, "odd": sum(len(result.odd) for result in results)},
    )


def _report(results: list[ShardResult]) -> bytes:
    lines = (
        json.dumps({"shard": result.entry.name, **asdict(oddity)}, ensure_ascii=False)
        for result in results
        for oddity in result.odd
    )
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _plan_name(listing: Listing, chosen: NDArray[np.int64], options: ShardOptions) -> str:
    content = json.dumps(options.what_counts(), sort_keys=True).encode()
    return f"{listing.digest()}-{xxhash.xxh3_64_hexdigest(content + chosen.tobytes())}"


@contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """Turn the file system's errors into advice."""
    try:
        yield
    except StopSharding as error:
        raise UserError(str(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{destination}: the disk is full; finished shards are kept, and the same command goes on"
            ) from None
        raise UserError(f"{error.filename or destination}: {error.strerror or error}") from None
