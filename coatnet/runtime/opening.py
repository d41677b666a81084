"""How a run begins: one rank opens the directory, and an error there ends all alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coatnet.config import to_dict, to_yaml
from coatnet.runtime.environment import describe_environment
from coatnet.runtime.lease import Lease
from coatnet.runtime.plan import write_plan
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, write_atomically


@contextmanager
def opened_run(
    run: RunDirectory,
    *,
    ranks: Ranks,
    config: Any,
    force: bool | None,
    lease: Lease | None = None,
    **environment: Any,
) -> Iterator[Lease | None]:
    """Hold the lease on a run's directory, on the main rank, with config and environment written into it.

    Of a run that is done they stay what it was trained by.

    Args:
        run: the directory.
        ranks: all of them call this.
        config: a root schema, whose `run_digest` tells what must not change under a run.
        force: take a run over whose config was another; None where the command has no such option.
        lease: of the main rank, if it has taken it early.
        environment: what stands in environment.json beside versions and commit.

    Raises:
        UserError: another job holds the directory, or it belongs to another config.
        LeaseLost: another job has taken it over since the lease was taken early.
    """

    def take_and_describe() -> None:
        nonlocal lease
        lease = lease or Lease.acquire(run.path)
        lease.check()  # one that is silent while torch loads is believed dead on another host
        run.check_config(config, force=force)
        if run.marker("done") is None:
            run.create(to_yaml(config), digest=config.run_digest())
            run.clear("stopped")
            _describe(run, config, ranks=ranks, **environment)

    try:
        ranks.try_on_main(take_and_describe, folder=run.path)
        yield lease
    finally:
        if lease is not None:
            lease.release()


def _describe(run: RunDirectory, config: Any, *, ranks: Ranks, **environment: Any) -> None:
    """Write what the run is on, and what it should take there."""
    about = describe_environment(device=ranks.device_type, world_size=ranks.world_size, **environment)
    write_atomically(run.environment, json.dumps(about, indent=2) + "\n")
    write_plan(run, config=to_dict(config), ranks=ranks)
