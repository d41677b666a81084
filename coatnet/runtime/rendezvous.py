"""Where a rank finds its number and its peers: what torchrun, SLURM or our launcher put into the environment.

Imports no torch.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from coatnet.config import UserError

ENDED_TOGETHER = "COATNET_ENDED_TOGETHER"  # set by our launcher, which ends all ranks where one has ended
_SLURM_PORT_BASE, _SLURM_PORT_SPAN = 20000, 10000


@dataclass(frozen=True)
class Place:
    """What the launcher says about this process."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def find_place() -> Place:
    """Read torchrun's variables (our launcher sets the same), else SLURM's, to which MASTER_PORT is added.

    Raises:
        UserError: neither is there.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _place("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ:
        if "MASTER_ADDR" not in os.environ:
            raise UserError("MASTER_ADDR is not set: submit with `coatnet submit`, which sets it for srun")
        os.environ.setdefault("MASTER_PORT", str(slurm_port(int(os.environ["SLURM_JOB_ID"]))))
        return _place("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
    raise UserError(
        "neither RANK and WORLD_SIZE nor SLURM_PROCID and SLURM_NTASKS are set: start under torchrun or srun"
    )


def _place(*names: str) -> Place:
    """Read a launcher's variables, of which SLURM's last may be 4(x2); the node's own may be missing."""
    given = [os.environ.get(name, other) for name, other in zip(names, ("", "", "0", "1"), strict=True)]
    return Place(*(int(value.split("(")[0]) for value in given))


def local_variables(rank: int, *, ranks: int, port: int) -> dict[str, str]:
    """Return the variables that give a process its place among this machine's ranks."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **{key: str(place[key]) for key in place}}


def slurm_port(number: int) -> int:
    """Return the rendezvous port of a SLURM job, or of one of its starts: every rank computes the same."""
    return _SLURM_PORT_BASE + number % _SLURM_PORT_SPAN


def own_rank() -> int:
    """Return this process's number among the ranks; 0 where nobody launched it."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def already_launched() -> bool:
    """True under srun (with more than a batch shell), torchrun or our launcher: this process is a rank.

    A shell that SLURM gives to a person, by `srun --pty` or salloc, is a step of one task as well; nobody has
    told it where the first rank is.
    """
    if "RANK" in os.environ:
        return True
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS"))
    is_task = "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ
    return is_task and ("MASTER_ADDR" in os.environ or tasks != "1")


def ends_for_all() -> bool:
    """True where a rank that ends leaves no other one waiting: our launcher ends them, or there is none.

    srun and torchrun, if they end them at all, give them half a minute for it.
    """
    return ENDED_TOGETHER in os.environ or not already_launched() or find_place().world_size == 1


def choose_interface(master: str) -> str:
    """Tell gloo and NCCL which interface leads to the first node, and return its name.

    A host whose own name resolves to 127.0.1.1 (Debian's default) makes gloo fail; asking the kernel for the
    route towards a peer does not depend on names.

    Raises:
        UserError: there is no route, or no interface of this host has its address.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return os.environ["GLOO_SOCKET_IFNAME"]
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))
        except OSError as error:
            raise UserError(f"no route to the first node {master} (MASTER_ADDR): {error}") from None
        address = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            if name != "lo":
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return name
    raise UserError(f"no network interface has the address {address} that leads to {master}")
