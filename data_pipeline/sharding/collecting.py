"""Works off the shards that are not finished: results into the journal, the progress and the budget.

Knows neither what a job does nor how shards are planned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from coatnet.runtime.progress import progress
from data_pipeline.sharding.commit import SkipBudget
from data_pipeline.sharding.job import ShardResult
from data_pipeline.sharding.journal import Journal
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.workers import run_jobs

J = TypeVar("J")
_FEW_BYTES = 64_000_000  # below, starting worker processes costs more than it saves


def collect(
    names: Sequence[str],
    job_of: Callable[[int], J],
    work: Callable[[J], ShardResult],
    *,
    journal: Journal,
    options: ShardOptions,
    images: int,
    source_bytes: int,
    label: str,
    quiet: bool,
) -> list[ShardResult]:
    """Work off what the journal does not hold yet, and return the results of all shards in their order.

    Args:
        names: of the shards.
        job_of: makes the job of a shard, given its number among them.
        work: does it, in any process.
        images, source_bytes: in all, finished ones included.
        label: of the progress.

    Raises:
        UserError: too many images have to be skipped, or a worker died.
    """
    results = journal.finished()
    missing = [number for number, name in enumerate(names) if name not in results]
    budget = SkipBudget(options.bad_budget, total=images)
    for result in results.values():
        budget.count(result)
    workers = options.workers or (1 if source_bytes < _FEW_BYTES else 0)
    done = sum(result.images for result in results.values())
    with progress(images, label, "images", done=done, enabled=not quiet) as bar:
        for result in run_jobs(work, map(job_of, missing), workers=workers, count=len(missing)):
            journal.add(result)
            results[result.entry.name] = result
            bar.advance(result.images)
            budget.count(result)
    return [results[name] for name in names]
