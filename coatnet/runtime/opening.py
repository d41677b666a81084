"""How a run begins: one rank opens the directory, and an error there ends all alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yaml import safe_load

from coatnet.config import UserError
from coatnet.runtime.environment import describe_environment
from coatnet.runtime.lease import Lease
from coatnet.runtime.prediction import predict
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import Reread, RunDirectory, cannot_write, write_atomically


def open_run(
    run: RunDirectory,
    *,
    ranks: Ranks,
    config_yaml: str,
    digest: str,
    force: bool | None = None,
    reread: Reread | None = None,
    **environment: Any,
) -> Lease | None:
    """Take the lease and write config and environment, on the main rank; an error there ends all alike.

    Args:
        run: the directory.
        ranks: all of them call this.
        config_yaml, digest: the resolved config, and what must not change under a run.
        force: take a run over whose config was another; None where the command has no such option.
        reread: gives the digest of the config that lies there, as this version reads it.
        environment: what stands in environment.json beside versions and commit.

    Raises:
        UserError: another job holds the directory, or it belongs to another config.
    """
    lease, trouble = None, None
    if ranks.is_main:
        try:
            lease = Lease.acquire(run.path)
            run.create_or_resume(config_yaml, digest=digest, force=force, reread=reread)
            run.clear("stopped")
            described = describe_environment(
                device=ranks.device_type, world_size=ranks.world_size, **environment
            )
            write_atomically(run.environment, json.dumps(described, indent=2) + "\n")
            predict(run, config=safe_load(config_yaml), world_size=ranks.world_size, device=ranks.device_name)
        except UserError as error:
            trouble = str(error)
        except OSError as error:
            trouble = str(cannot_write(error, folder=run.path))
    trouble = ranks.broadcast(trouble)
    if trouble is not None:
        if lease is not None:
            lease.release()
        raise UserError(trouble)
    return lease


@contextmanager
def opened_run(run: RunDirectory, *, ranks: Ranks, **facts: Any) -> Iterator[Lease | None]:
    """Open a run as `open_run` does, and give its lease back at the end."""
    lease = open_run(run, ranks=ranks, **facts)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()
