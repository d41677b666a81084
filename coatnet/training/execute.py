"""What every rank of a run executes, from its start to its end. Loads torch only where signals can wait."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from coatnet.config import to_dict
from coatnet.config.plain_text import one_line
from coatnet.runtime.endings import Distrusted, RankError
from coatnet.runtime.lease import Lease, LeaseLost
from coatnet.runtime.opening import opened_run
from coatnet.runtime.plan import write_plan
from coatnet.runtime.progress import clock
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.rendezvous import already_launched
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag, Stopped
from coatnet.runtime.voice import heedless_voice

# What torch's data parallelism says of an argument that accelerate hands on, and of 1×1 depthwise strides.
_OF_NO_CONSEQUENCE = "`broadcast_buffers` is deprecated|Grad strides do not match"
_MEASURING_SECONDS = 0.3
_MOST_LETTERS = 1000
_DAY_SECONDS = 86400
_LONG_SECONDS = 20.0  # a shorter run is not worth a second for a better plan


def execute(
    config: Any,
    make_run: Callable[..., Any],
    *,
    decoder: str,
    force: bool | None = None,
    lease: Lease | None = None,
    alone: bool = False,
) -> None:
    """Join the ranks, train, leave a marker.

    Args:
        config: a root schema with the sections run and launch, and a digest.
        make_run: puts a stage's `TrainingRun` together, once the directory is this run's.
        decoder: which one the images are read by.
        force: take a run over whose config was another; None where the command has no such option.
        lease: of the main rank, if it has taken it early.
        alone: go on without a process group where nobody launched one.
    """
    warnings.filterwarnings("ignore", _OF_NO_CONSEQUENCE)
    run = RunDirectory(config.run.directory)
    with heedless_voice(), StopFlag() as stop:
        start = Ranks.single if alone and not already_launched() else Ranks.start
        ranks = start(deterministic=config.launch.deterministic)
        from coatnet.model import rows  # loads torch

        about = {"decoder": decoder, "network": rows.name(device_type=ranks.device_type)}
        with opened_run(run, ranks=ranks, config=config, force=force, lease=lease, **about) as lease:
            if run.marker("done") is not None:
                ranks.say(f"{run.path}: is done already; see `coatnet report {run.path}`")
            else:
                digest = config.run_digest()
                make = partial(make_run, config, lease=lease, digest=digest, stop=stop)
                with early_end_recorded(run, ranks=ranks, lease=lease):
                    _train(make, stop, config=config, ranks=ranks, run=run)
        ranks.stop()


@contextmanager
def early_end_recorded(run: RunDirectory, *, ranks: Ranks, lease: Lease | None) -> Iterator[None]:
    """Keep as an event by what error a life ends; one whose run another job has taken leaves no trace."""
    try:
        yield
    except Exception as error:
        # What all met with the first one says.
        if (ranks.is_main or isinstance(error, RankError | Distrusted)) and _is_held(lease):
            reason = one_line(str(error))[:_MOST_LETTERS] or type(error).__name__
            run.record_event("ended", writer=ranks.rank, rank=ranks.rank, reason=reason)
        raise


def _is_held(lease: Lease | None) -> bool:
    """Tell whether a rank's lease still holds; the main one alone has any."""
    try:
        if lease is not None:
            lease.check()
    except (LeaseLost, OSError):
        return False
    return True


def _train(
    make_run: Callable[..., Any], stop: StopFlag, *, config: Any, ranks: Ranks, run: RunDirectory
) -> None:
    """Train, unless a stop was asked for before the first step."""
    try:
        if ranks.any(stop.requested):  # while torch was loading
            raise Stopped
        from coatnet.training.loop import train_to_end

        with stop.at_once() if ranks.world_size == 1 else nullcontext():
            plan_for_this_hour(run, config=config, ranks=ranks)
            if ranks.is_main:
                tell_plan(run)
            made = make_run(ranks=ranks, run=run)
        if ranks.any(stop.requested):  # before what takes longest, the dry run and its compilation
            raise Stopped
        train_to_end(made)
    except Stopped:
        if ranks.is_main:
            run.mark("stopped", reason=stop.reason)
        ranks.say(f"{run.path}: stopped before it began; the same command goes on")


def plan_for_this_hour(run: RunDirectory, *, config: Any, ranks: Ranks) -> None:
    """Plan a longer run on cores once more, by what its ranks attain now: cores are rarely one's own."""
    if ranks.device_type != "cpu" or not ranks.broadcast(ranks.is_main and _is_long(run)):
        return
    from coatnet.model.rates import measure_rates

    own = measure_rates(seconds=_MEASURING_SECONDS, clock=time.perf_counter)
    everyones = ranks.gather([asdict(rate) for rate in own])
    plan = partial(write_plan, run, config=to_dict(config), ranks=ranks, rates=everyones)
    ranks.try_on_main(plan, folder=run.path)


def tell_plan(run: RunDirectory) -> None:
    """Say what a step and the run should take, before the first one: it may be more than anyone waits for."""
    plan = _read_plan(run)
    if plan is None:
        return
    said = f"{plan['step_seconds']:.3g} s a step of {plan['global_batch']:,} images"
    if plan.get("days") is not None:
        said += f", {clock(plan['days'] * _DAY_SECONDS)} in all"
    print(f"{run.path}: planned {said}", file=sys.stderr, flush=True)


def _is_long(run: RunDirectory) -> bool:
    """Return whether a run is long by the plan that it has; one without a length is."""
    plan = _read_plan(run)
    return plan is not None and (plan.get("days") is None or plan["days"] * _DAY_SECONDS > _LONG_SECONDS)


def _read_plan(run: RunDirectory) -> dict[str, Any] | None:
    return json.loads(run.plan.read_text()) if run.plan.exists() else None
