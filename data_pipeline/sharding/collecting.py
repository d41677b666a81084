"""Works off the shards that are not finished, and commits: journal, progress and budget.

Knows neither what a job does nor how shards are planned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coatnet.runtime.progress import progress
from data_pipeline.manifest import Manifest
from data_pipeline.sharding.commit import SkipBudget, commit, finished_before
from data_pipeline.sharding.job import Oddity, ShardResult
from data_pipeline.sharding.journal import journal_in, remove_journal
from data_pipeline.sharding.listing import Listing
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.workers import run_jobs

_FEW_BYTES = 64_000_000  # below, starting worker processes costs more than it saves


def make_corpus(
    destination: Path,
    listing: Listing,
    names: Sequence[str],
    job_of: Callable[[int], Callable[[], ShardResult]],
    *,
    options: ShardOptions,
    plan: str,
    source: dict[str, Any],
    images: int,
    dropped: Sequence[Oddity] = (),
    label: str,
    quiet: bool,
) -> Manifest:
    """Work off what the destination's journal does not hold yet, and commit the results of all shards.

    Args:
        names: of the shards, in their order.
        job_of: makes the job of a shard, given its number among them; it can be done in any process.
        plan: names what is done; finished work of another plan is refused.
        source: what the manifest says of it beside the listing's own.
        images: in all, finished ones included.
        dropped: what the listing holds and no shard.
        label: of the progress.

    Raises:
        UserError: too many images have to be skipped, a worker died, or the destination holds something else.
    """
    present = finished_before(destination, plan=plan)
    if present is not None:
        remove_journal(destination)  # of one that was killed while it did so
        return present
    destination.mkdir(parents=True, exist_ok=True)
    with journal_in(destination, plan=plan) as journal:
        results = journal.finished()
        missing = [number for number, name in enumerate(names) if name not in results]
        budget = SkipBudget(options.bad_budget, total=images)
        for result in results.values():
            budget.count(result)
        workers = options.workers or (1 if int(listing.size.sum()) < _FEW_BYTES else 0)
        done = sum(result.images for result in results.values())
        with progress(images, label, "images", done=done, enabled=not quiet) as bar:
            for result in run_jobs(map(job_of, missing), workers=workers, count=len(missing)):
                journal.add(result)
                results[result.entry.name] = result
                bar.advance(result.images)
                budget.count(result)
        in_order = [results[name] for name in names]
        return commit(destination, listing, in_order, dropped=dropped, source={**source, "plan": plan})
