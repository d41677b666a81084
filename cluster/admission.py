"""What is refused before the queue: what SLURM would let wait for ever, and what the ranks would refuse."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.history import was_submitted
from cluster.recipe import is_pretraining, lookup, mixes_images
from cluster.run_jobs import jobs_of_run, users_of
from cluster.site import SiteConfig
from coatnet.checkpoint.inspection import check_manifest_size
from coatnet.config import UserError, to_dict
from coatnet.config.batches import cut
from coatnet.config.plain_text import number_of
from coatnet.runtime.lease import Lease
from coatnet.runtime.run_directory import RunDirectory

RELEASABLE = ("held", "cancelled")


def check_start(config: Any, *, run: RunDirectory, world_size: int) -> None:
    """Refuse what only the job would: a run that is finished, closed or another, data, batches, seeds.

    Args:
        config: a training run's, None for other commands.

    Raises:
        UserError: they would.
    """
    if run.marker("done") is not None:
        raise UserError(f"{run.path} is done; choose another run.directory")
    for folder in (run.path, run.logs, run.checkpoints, run.account):  # a colleague's run, say
        if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise UserError(f"{folder}: takes no files from you; choose another run.directory")
    if config is None:
        return
    run.check_config(config)
    config.data.check_here()
    if run.corpora.exists():  # a run that is new to them may have any, and a large folder takes its time
        run.check_corpora(config.data.digests_here())
    # The config alone is asked: the model may come of an earlier stage of a pipeline, which has not run.
    recipe = to_dict(config)
    if seeds := lookup(recipe, "seeds"):
        one = f"seeds=[] seed={seeds[0]} run.directory={run.path}/seed-{seeds[0]}"
        raise UserError(f"seeds: several runs in one job; submit one for each, as {one}")
    if is_pretraining(recipe):
        stage, averaged = lookup(recipe, "zero.stage"), bool(lookup(recipe, "ema"))
        check_manifest_size(config.model, ranks=world_size, stage=stage, averaged=averaged)
    later = (change["global_batch"] for change in lookup(recipe, "train.batch_changes") or ())
    cut(
        [lookup(recipe, "train.global_batch"), *later],
        world_size=world_size,
        micro_batch=lookup(recipe, "train.micro_batch"),
        group_images=lookup(recipe, "norm.group_images"),
        mixed=mixes_images(recipe),
        evenly=is_pretraining(recipe),
        settled=run.settled_group_images,
    )


def queued_job(directory: Path) -> str | None:
    """Return the job of this run that waits or runs, None where there is none."""
    jobs = jobs_of_run(directory, slurm.queue(users=users_of([directory])))
    return next((job.array_job_id or job.job_id for job in jobs if job.is_alive), None)


def still_queued(job_ids: Sequence[str]) -> list[str]:
    """Return those of one's own jobs that still wait or run."""
    queue = slurm.queue() if job_ids else {}
    return [job_id for job_id in job_ids if job_id in queue and queue[job_id].is_alive]


def check_limits(site: SiteConfig) -> None:
    """Refuse what SLURM would let wait for ever. With several partitions one that fits suffices.

    Raises:
        UserError: none does.
    """
    reasons = [_refusal(site, one) for one in slurm.partitions(site.partition)]
    if reasons and None not in reasons:
        raise UserError("; ".join(reason for reason in reasons if reason))


def _refusal(site: SiteConfig, partition: slurm.Partition) -> str | None:
    limit, nodes = partition.limit_seconds, site.nodes + site.spares
    if limit is not None and site.time_limit_seconds > limit:
        return (
            f"--time {site.time} is longer than partition {partition.name} allows "
            f"({number_of(limit // 60, 'minute')}); "
            "SLURM would queue the job for ever. Ask for less: the run goes on in further lives"
        )
    if partition.most_nodes is not None and nodes > partition.most_nodes:
        spares = f" with {number_of(site.spares, 'spare')}" if site.spares else ""
        are = "is" if nodes == 1 else "are"
        return (
            f"{number_of(nodes, 'node')}{spares} {are} more than partition {partition.name} gives, "
            f"{partition.most_nodes}"
        )
    if partition.state != "UP":
        return f"partition {partition.name} is {partition.state}"
    return None


def check_run(directory: Path, *, release: bool) -> None:
    """Refuse a run that was held or cancelled, or that somebody is at already.

    Args:
        release: go on although it was held or cancelled.

    Raises:
        UserError: it is.
    """
    run = RunDirectory(directory)
    for name in RELEASABLE:
        found = run.marker(name)
        if found is not None and not release:
            reason = f" ({found['reason']})" if found.get("reason") else ""
            raise UserError(
                f"{directory} is {name}{reason}; submit with --release to go on from its checkpoint"
            )
    queued = queued_job(directory)
    if queued is not None:
        raise UserError(
            f"{directory} has job {queued} already; watch it, or end it by: coatnet cancel {directory}"
        )
    if not was_submitted(directory):
        Lease.require_free(directory)
