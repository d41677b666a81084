"""One node's checks before the first step: `python -m cluster.node_check RESULTS`, one task per node.

Writes RESULTS/<node>.json twice: after what the node can tell alone, and after what needs the other nodes, so
that a node that hangs in the collective is still known to be sound itself. Torch is imported inside functions
only, since this is the one module of the package that runs where the ranks run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coatnet.config.plain_text import number_of
from coatnet.runtime.whole_files import write_whole

_COMMAND_SECONDS = 30.0
_READ_BYTES = 1 << 20
_MATRIX = 512
_MESSAGE_BYTES = 16 << 20
_ROUNDS = 3


def main() -> int:
    """Check this node; return 0 even if it is unfit, since srun would end the other checks."""
    results = Path(sys.argv[1])
    limits = json.loads((results / "limits.json").read_text())
    node = os.environ["SLURMD_NODENAME"]
    found: dict[str, Any] = {"node": node, "failures": [], "facts": {}}
    for check in (
        check_open_files,
        check_shared_memory,
        check_free_space,
        check_shards,
        check_interface,
        check_commands,
        check_devices,
    ):
        _apply(check, limits, found)
    write_whole(results / f"{node}.json", json.dumps(found).encode())
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        _apply(check_together, limits, found)
        write_whole(results / f"{node}.json", json.dumps(found).encode())
    return 0


def check_open_files(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the limit of open files, to which ranks raise what they begin with."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts["open_files"] = hard
    if hard != resource.RLIM_INFINITY and hard < limits["open_files"]:
        return f"{hard} open files allowed, {limits['open_files']} needed (ulimit -n)"
    return None


def check_shared_memory(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong with /dev/shm."""
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    facts["shared_memory_bytes"] = free
    return _too_little("/dev/shm", free, limits["shared_memory_bytes"])


def check_free_space(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the run directory as this node sees it, and with its free space."""
    directory = Path(limits["directory"])
    if not os.access(directory, os.W_OK):
        return f"cannot write to {directory}"
    free = shutil.disk_usage(directory).free
    facts["free_space_bytes"] = free
    return _too_little(str(directory), free, limits["free_space_bytes"])


def check_shards(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the local corpora: a manifest and a shard of each must be readable here."""
    began = time.monotonic()
    read = 0
    for root in map(Path, limits["shards"]):
        if not root.is_dir():
            return f"cannot read {root}: no such folder on this node"
        with os.scandir(root) as entries:  # the first of many thousands that a folder tells is enough
            shard = next((entry.path for entry in entries if entry.name.endswith(".tar")), None)
        for path in (str(root / "manifest.json"), shard):
            if path is not None and os.path.exists(path):
                with open(path, "rb") as file:
                    read += len(file.read(_READ_BYTES))
    facts.update(read_bytes=read, read_seconds=time.monotonic() - began)
    return None


def check_interface(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the way to the first node: there must be an interface that leads there."""
    from coatnet.config import UserError
    from coatnet.runtime.rendezvous import choose_interface

    try:
        facts["interface"] = choose_interface(os.environ["MASTER_ADDR"])
    except UserError as error:
        return str(error)
    return None


def check_commands(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return which of the site's own checks failed."""
    for argv in limits["commands"]:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()
            return f"{argv[0]} ended with status {done.returncode}{': ' + lines[-1][:200] if lines else ''}"
    return None


def check_devices(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong with the GPUs: their number, or one that computes a product wrongly."""
    if not limits["devices"]:
        return None
    import torch

    facts["devices"] = torch.cuda.device_count()
    if torch.cuda.device_count() < limits["devices"]:
        return f"{number_of(torch.cuda.device_count(), 'GPU')} visible, {limits['devices']} asked for"
    left = torch.arange(_MATRIX * _MATRIX, dtype=torch.float32).reshape(_MATRIX, _MATRIX) % 7
    expected = left @ left.T  # small integers: exact in float32 in any order of summation
    for index in range(limits["devices"]):
        on_device = left.to(f"cuda:{index}")
        if not torch.equal((on_device @ on_device.T).cpu(), expected):
            return f"GPU {index} computes a matrix product wrongly"
    return None


def check_together(limits: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """Return what is wrong between the nodes: clocks, and the bandwidth of an all-reduce."""
    import torch

    from coatnet.runtime.ranks import Ranks

    ranks = Ranks.start()
    ranks.barrier(timeout_seconds=limits["timeout_seconds"])
    mine = time.time()
    clocks = sorted(float(value) for value in ranks.gather(mine))
    middle = clocks[len(clocks) // 2]
    message = torch.ones(_MESSAGE_BYTES // 4, device=ranks.device)
    ranks.all_reduce_sum(message)
    float(message[0])  # a sum is only sent off to a GPU; to read a number of it is to wait
    began = time.monotonic()
    for _ in range(_ROUNDS):
        ranks.all_reduce_sum(message)
    float(message[0])
    seconds = (time.monotonic() - began) / _ROUNDS
    facts.update(clock_skew_seconds=mine - middle, all_reduce_bytes_per_second=_MESSAGE_BYTES / seconds)
    if abs(facts["clock_skew_seconds"]) > limits["clock_skew_seconds"]:
        return f"the clock is {facts['clock_skew_seconds']:+.1f} s off the other nodes'"
    return _too_little(
        "all-reduce bandwidth", int(_MESSAGE_BYTES / seconds), limits["bandwidth_bytes_per_second"]
    )


def _apply(
    check: Callable[[dict[str, Any], dict[str, Any]], str | None],
    limits: dict[str, Any],
    found: dict[str, Any],
) -> None:
    try:
        failure = check(limits, found["facts"])
    except Exception as error:  # a check that crashes is a finding about the node, whatever it is
        failure = (
            f"{check.__name__}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    if failure:
        found["failures"].append(failure)


def _too_little(what: str, value: int, needed: float) -> str | None:
    if value >= needed:
        return None
    return f"{what}: {value / 2**20:.0f} MiB, {needed / 2**20:.0f} MiB needed"


if __name__ == "__main__":
    sys.exit(main())
