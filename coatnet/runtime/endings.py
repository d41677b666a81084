"""How a rank ends: what a user can mend is one line from one rank, a lost peer one without stacks."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from coatnet.config import UserError
from coatnet.config.plain_text import one_line
from coatnet.runtime.lease import LeaseLost
from coatnet.runtime.rendezvous import own_rank

STATUS_USER_ERROR = 2
OWN_LOG = "COATNET_OWN_LOG"  # set for a rank whose words nobody else's stand among
# How gloo and NCCL say that the other end of a connection is gone.
_LOST_PEER = re.compile(r"Connection (closed|reset) by peer|remote process exited")


class RankError(UserError):
    """A user's mistake that other ranks may not see: one device is out of memory."""


class Unreachable(RankError):
    """A server did not answer for long: neither config nor data are wrong, and a new start may go well."""


class Distrusted(RuntimeError):
    """What a rank holds is wrong, by no mistake of the user or the program: a new start may go well."""


def run_rank(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a rank's main with some arguments, by default the process's, and end the process."""
    try:
        with endings_in_a_line():
            main(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as error:
        _leave(error.code if isinstance(error.code, int) else 1)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1)
    sys.exit(0)


@contextmanager
def endings_in_a_line() -> Iterator[None]:
    """End the process where a rank meets with what needs no stacks.

    What a user can mend is one line from rank 0 and status 2 from all; what one rank alone met with
    (`RankError`) is said by that rank. Where each rank has a log, all say it: the launcher, and under srun
    the batch script, reads that of the rank which ended first. The others may be seconds behind.
    """
    rank = own_rank()
    speaks = rank == 0 or "RANK" not in os.environ or OWN_LOG in os.environ
    try:
        yield
    except UserError as error:
        if speaks or isinstance(error, RankError):
            _say(one_line(str(error)))
        _leave(1 if isinstance(error, Unreachable) else STATUS_USER_ERROR)
    except Distrusted as error:
        _say(str(error))
        _leave(1)
    except LeaseLost as error:  # neither the user's mistake nor a fault of the program
        _say(f"{error}; this job ends without a trace in the run")
        _leave(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(f"{error}; make room and give the same command again")
        _leave(STATUS_USER_ERROR)
    except RuntimeError as error:
        lost = _LOST_PEER.search(str(error))
        if lost is None:
            raise
        _say(f"rank {rank} lost another rank ({lost[0]}), which knows why")
        _leave(1)


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def _leave(status: int) -> NoReturn:
    """End at once. gloo's threads, whose peers may be gone already, abort the process in its destructors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
