"""The local supervisor: one process per rank, ended together. Knows nothing of what the ranks do."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def run_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    environment: Mapping[str, str] | None = None,
    log_directory: Path | None = None,
) -> int:
    """Run `python -m module arguments` once per rank and return the exit status.

    SIGTERM, SIGUSR1 and SIGINT are passed on, each once. When a rank dies badly the others are ended within
    five seconds; when this process is killed, the kernel ends them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if log_directory is not None:
        log_directory.mkdir(parents=True, exist_ok=True)
    group = [
        _start_rank(
            module, arguments, rank=rank, ranks=ranks, port=port, environment=environment, logs=log_directory
        )
        for rank in range(ranks)
    ]
    forwarded: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        if number not in forwarded:
            forwarded.add(number)
            for process in group:
                if process.poll() is None:
                    process.send_signal(number)

    passed_on = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    previous = {number: signal.signal(number, forward) for number in passed_on}
    try:
        return _wait(group)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _end(group)


def device_count() -> int:
    """Return how many ranks this machine is for: one per GPU, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def _start_rank(
    module: str,
    arguments: Sequence[str],
    *,
    rank: int,
    ranks: int,
    port: int,
    environment: Mapping[str, str] | None,
    logs: Path | None,
) -> subprocess.Popen[bytes]:
    variables = {
        **os.environ,
        **(environment or {}),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # Rank 0 speaks to the terminal; the others write to their own log, as under SLURM.
    output = None if rank == 0 or logs is None else (logs / f"rank{rank}.log").open("ab")
    try:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=variables,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    finally:
        if output is not None:
            output.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(group: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        states = [process.poll() for process in group]
        bad = next((state for state in states if state not in (None, 0)), None)
        if bad is not None:
            return _end(group) or (128 - bad if bad < 0 else bad)
        if all(state == 0 for state in states):
            return 0
        time.sleep(_POLL_SECONDS)


def _end(group: Sequence[subprocess.Popen[bytes]]) -> int:
    alive = [process for process in group if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return 0
