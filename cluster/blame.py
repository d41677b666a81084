"""Which node a failure is to be blamed on: pure functions from what was seen of it.

A program's own mistake fails anywhere, so an exit status alone blames nobody. Two things do blame a node: the
words by which drivers and kernels report broken hardware, and ranks that were killed by a signal there in two
tries in a row.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Mapping, Sequence

from cluster.decide import Ending
from cluster.history import Life

# From the messages of CUDA, cuDNN, NCCL, the kernel and our ranks; "out of memory" is the program's affair.
_HARDWARE = re.compile(
    r"uncorrectable|\bECC\b|\bXid\b|CUDA error: (unspecified launch failure|unknown error|hardware)"
    r"|CUDA-capable device\(s\) is/are busy|no CUDA-capable device|GPU is lost|fallen off the bus"
    r"|NVLink|system not yet initialized|driver shutting down|Input/output error|Stale file handle"
    r"|Read-only file system|silent corruption",
    re.IGNORECASE,
)
_FIRST_SIGNAL_STATUS = 129
# By which people and SLURM ask a rank to stop: one that has not begun to listen yet dies of them.
_ASKED = {128 + number for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
_ALIKE = 3
_CRASHES = 2
KILLED_TWICE = "killed by a signal there in two tries"


def node_to_blame(
    crashes: Sequence[Ending], *, nodes: Sequence[str], known: Collection[str] = ()
) -> tuple[str, str] | None:
    """Return a node and why, None where the crashes name none.

    Args:
        crashes: of one life, the last of them new.
        nodes: on which ranks ran.
        known: why nodes were left out before. Who was killed on other nodes as well has a mistake of his own.
    """
    last = crashes[-1]
    if last.node not in nodes:
        return None
    if _HARDWARE.search(last.message):
        return last.node, f"a crash: {last.message}"
    recent = crashes[-_CRASHES:]
    if len(nodes) < 2 or len(recent) < _CRASHES or any(KILLED_TWICE in reason for reason in known):
        return None
    if all(one.node == last.node and _was_killed(one) for one in recent):
        return last.node, f"a rank was {KILLED_TWICE}, now by signal {last.status - 128}"
    return None


def _was_killed(ending: Ending) -> bool:
    return ending.status >= _FIRST_SIGNAL_STATUS and ending.status not in _ASKED


def is_nobodys_fault(unfit: Mapping[str, str], *, nodes: Collection[str], lives: Sequence[Life]) -> bool:
    """Return whether life after life finds all of its nodes unfit in one and the same way.

    Then it is the site, the config or the container, and leaving out one node after the other would end with
    none. A job of one node cannot tell that from a single life.

    Args:
        unfit: this life's unfit nodes, with the reason.
        nodes: those that this life checked.
        lives: the ended ones.
    """
    reasons = set(unfit.values())
    if set(unfit) != set(nodes) or len(reasons) != 1:
        return False
    before = lives[-(_ALIKE - 1) :]
    return len(before) == _ALIKE - 1 and all(
        set(life.excluded) == set(life.nodes) and set(life.excluded.values()) == reasons for life in before
    )
