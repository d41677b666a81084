"""How a run begins and how its ranks fail: one opens the directory, a user's mistake is said once."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from yaml import safe_load

from coatnet.config import UserError
from coatnet.runtime.environment import describe_environment
from coatnet.runtime.launch import STATUS_USER_ERROR
from coatnet.runtime.lease import Lease, LeaseLost
from coatnet.runtime.prediction import predict
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, write_atomically


class RankError(UserError):
    """A user's mistake that other ranks may not see: one device is out of memory."""


def open_run(
    run: RunDirectory, *, ranks: Ranks, config_yaml: str, digest: str, force: bool = False, **environment: Any
) -> Lease | None:
    """Take the lease and write config and environment, on the main rank; an error there ends all alike.

    Args:
        run: the directory.
        ranks: all of them call this.
        config_yaml, digest: the resolved config, and what must not change under a run.
        force: take a run over whose config was another.
        environment: what stands in environment.json beside versions and commit.

    Raises:
        UserError: another job holds the directory, or it belongs to another config.
    """
    lease, trouble = None, None
    if ranks.is_main:
        try:
            lease = Lease.acquire(run.path)
            run.create_or_resume(config_yaml, digest=digest, force=force)
            run.clear("stopped")
            described = describe_environment(
                device=ranks.device_type, world_size=ranks.world_size, **environment
            )
            write_atomically(run.environment, json.dumps(described, indent=2) + "\n")
            predict(run, config=safe_load(config_yaml), world_size=ranks.world_size, device=ranks.device_name)
        except (UserError, OSError) as error:
            trouble = str(error)
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


def run_rank(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a rank's main; a user's mistake is one line from rank 0 and status 2 from all.

    What one rank alone met with (`RankError`) is said by that rank.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, RankError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        _leave(STATUS_USER_ERROR)
    except LeaseLost as error:  # not the user's mistake, and no fault of the program: no stacks
        print(f"error: {error}; this job ends without a trace in the run", file=sys.stderr)
        _leave(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}; make room and give the same command again", file=sys.stderr)
        _leave(STATUS_USER_ERROR)
    sys.exit(0)


def _leave(status: int) -> NoReturn:
    """End at once. gloo's threads, whose peers may be gone already, abort the process in its destructors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
