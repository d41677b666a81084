"""The local supervisor: one process per rank, ended together. Knows nothing of what the ranks do."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from coatnet.runtime.endings import OWN_LOG, STATUS_USER_ERROR, run_rank
from coatnet.runtime.lease import Lease
from coatnet.runtime.parent import die_with_parent
from coatnet.runtime.rendezvous import ENDED_TOGETHER, already_launched, local_variables
from coatnet.runtime.run_directory import cannot_write
from coatnet.runtime.stop import SIGNALS
from coatnet.runtime.voice import heedless_voice, say_from_a_handler

_FIRST_PORT, _MOST_TRIED = 10_000, 100
_GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 2.0


def run_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    log_directory: Path | None = None,
    heeding: bool = True,
) -> int:
    """Run `python -m module arguments` once per rank and return the exit status.

    When a rank dies badly the others are ended within five seconds; when this process is killed, the kernel
    ends them.

    Args:
        module: its ranks, whose arguments and number follow.
        log_directory: the ranks but the first write into it.
        heeding: the ranks end in their own way: what asks for a stop is passed on, each signal once; one that
            comes while the ranks are being started reaches all of them. Otherwise Ctrl-C ends them.

    Raises:
        UserError: the folder for the logs cannot be written.
    """
    port = free_port()
    logs = _open_logs(log_directory, ranks=ranks)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until all ranks are there to pass them on to
    group: list[subprocess.Popen[bytes]] = []
    passed_on = SIGNALS if heeding else ()
    previous = {number: signal.signal(number, _forward_to(group)) for number in passed_on}
    try:
        for rank, log in enumerate(logs):
            place = local_variables(rank, ranks=ranks, port=port)
            group.append(_start_rank(module, arguments, place=place, mask=mask, log=log))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return _wait(group, logs=log_directory)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in previous.items():
            signal.signal(number, handler)
        _end(group)
        for log in logs:
            if log is not None:
                log.close()


def free_port() -> int:
    """Return a port that nobody listens on at this moment.

    It is none of those that the kernel gives to connections: one of them could have it before rank 0 listens.
    """
    own = range(_FIRST_PORT, int(_GIVEN_PORTS.read_text().split()[0]))
    for port in [*random.SystemRandom().sample(own, min(len(own), _MOST_TRIED)), 0]:  # 0: any
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free")


def _open_logs(folder: Path | None, *, ranks: int) -> list[BinaryIO | None]:
    """Return a file for every rank but the first, which speaks to the terminal, as under SLURM."""
    if folder is None:
        return [None] * ranks
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [None, *(_log_of(rank, logs=folder).open("ab") for rank in range(1, ranks))]
    except OSError as error:
        raise cannot_write(error, folder=folder) from None


def _forward_to(group: list[subprocess.Popen[bytes]]) -> Callable[[int, FrameType | None], None]:
    """Return a handler that passes every signal on once: a second one, which is answered, hurries no save."""
    forwarded: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        name, whom = signal.Signals(number).name, "the rank" if len(group) == 1 else f"{len(group)} ranks"
        if number in forwarded:
            say_from_a_handler(
                f"{name} again: {whom} will end once it is saved; kill -9 {os.getpid()} would lose it"
            )
            return
        if not forwarded:
            say_from_a_handler(f"{name}: asking {whom} to end, which saves what was reached")
        forwarded.add(number)
        for process in group:
            if process.poll() is None:
                process.send_signal(number)

    return forward


def launch_run(
    module: str, arguments: Sequence[str], *, directory: Path, ranks: int | None, alone: bool = False
) -> int:
    """Start a run's ranks on this machine and return the exit status; under srun and torchrun be a rank.

    A rank ends the process, at once where it fails: others wait for it in a collective.

    Args:
        module: its `main` takes the arguments and joins the ranks.
        directory: the run's; the ranks but the first write to its logs.
        ranks: how many; None for one per GPU.
        alone: a single rank runs in this process.

    Raises:
        UserError: another job holds the run directory, or it takes no files.
    """
    if already_launched():
        run_rank(import_module(module).main, arguments)
    # Asked here as well, so that a start in vain ends at once and not after torch has been loaded.
    Lease.require_free(directory)
    _require_room(directory)
    ranks = ranks or device_count()
    if alone and ranks == 1:
        import_module(module).main(arguments)
        return 0
    logs = directory / "logs"
    with heedless_voice():
        where = f"s; all but the first write to {logs}" if ranks > 1 else ""
        print(f"{directory}: starting {ranks} rank{where}", file=sys.stderr)
        return run_ranks(module, arguments, ranks=ranks, log_directory=logs)


def _require_room(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, "takes no files from you")
    except OSError as error:
        raise cannot_write(error, folder=directory) from None


def device_count() -> int:
    """Return how many ranks this machine is for: one per GPU, or one without."""
    return max(1, gpu_count())


def gpu_count() -> int:
    """Return how many GPUs torch could take.

    Asks CUDA's driver, as torch does (CUDA_VISIBLE_DEVICES counts): loading torch takes seconds.
    """
    build = version("torch").partition("+")[2]
    if build == "cpu":
        return 0
    if build.startswith("rocm"):
        import torch

        return torch.cuda.device_count()
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def _start_rank(
    module: str, arguments: Sequence[str], *, place: dict[str, str], mask: set[int], log: BinaryIO | None
) -> subprocess.Popen[bytes]:
    own_log = {} if log is None else {OWN_LOG: "1"}
    launcher = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **place, **own_log, ENDED_TOGETHER: "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=lambda: _become_rank(mask, launcher),
    )


def _become_rank(mask: set[int], launcher: int) -> None:
    """Die with the launcher; wait with signals only if the launcher's caller does."""
    die_with_parent(launcher)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wait(group: Sequence[subprocess.Popen[bytes]], *, logs: Path | None) -> int:
    while True:
        states = [process.poll() for process in group]
        bad = [(rank, state) for rank, state in enumerate(states) if state not in (None, 0)]
        if bad:
            # Of several that are found dead at once, those that were not killed, or refused, lost a peer.
            rank, state = min(bad, key=lambda one: (one[1] != STATUS_USER_ERROR, one[1] > 0))
            refused = rank > 0 and state == STATUS_USER_ERROR
            if refused:  # what all met with the first one says, if it may
                with suppress(subprocess.TimeoutExpired):
                    group[0].wait(_GRACE_SECONDS)
            _end(group)
            if refused and group[0].returncode == state:
                rank = 0
            if rank > 0 or state < 0:  # the first one speaks for itself, unless it was killed
                _say_who_died(rank, state, logs=logs)
            return 128 - state if state < 0 else state
        if all(state == 0 for state in states):
            return 0
        time.sleep(_POLL_SECONDS)


def _say_who_died(rank: int, state: int, *, logs: Path | None) -> None:
    how = f"was killed by {signal.Signals(-state).name}" if state < 0 else f"ended with status {state}"
    log = None if logs is None or rank == 0 else _log_of(rank, logs=logs)
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log else []
    if words and state == STATUS_USER_ERROR:  # it knew what was wrong
        print(words[-1], file=sys.stderr, flush=True)
        return
    last = f"; the last line of {log}: {words[-1]}" if words else ""
    print(f"error: rank {rank} {how}, and the others with it{last}", file=sys.stderr, flush=True)


def _log_of(rank: int, *, logs: Path) -> Path:
    return logs / f"rank{rank}.log"


def _end(group: Sequence[subprocess.Popen[bytes]]) -> None:
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
