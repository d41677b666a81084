"""How much memory this process may have: the machine's, or less where a job's control group says so.

SLURM (`--mem`) and containers bound a job by a control group, of version 1 or 2; the kernel ends whoever goes
over it, however much the machine has left. And what the C library does with memory that was freed. Imports no
torch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil


@dataclass(frozen=True)
class Memory:
    """What a process may have.

    Units: bytes.
    """

    free: int
    total: int


# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
KEPT_BLOCK = 64 * 2**20

_Names = tuple[str, str, str]  # of the limit, the usage, and of it the pages that the kernel would give back
_V1: _Names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2: _Names = ("memory.max", "memory.current", "inactive_file")


def available_memory(proc: Path = Path("/proc/self")) -> Memory:
    """Return what is free and what there is in all, by the tightest of the bounds.

    Args:
        proc: where the kernel tells of this process.
    """
    machine = psutil.virtual_memory()
    free, total = [machine.available], [machine.total]
    for folder, (allowed, usage, given_back) in _groups(proc):
        try:
            limit, used = (int((folder / name).read_text()) for name in (allowed, usage))
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # "max", the root of version 2, or not ours to read
            continue
        total.append(limit)
        free.append(max(limit - used + int(rows.get(given_back, 0)), 0))
    return Memory(min(free), min(total))


def keep_freed_memory() -> None:
    """Let glibc keep blocks of up to 64 MiB for the next tensor, unless the environment says otherwise.

    By itself it gives blocks of 32 MiB, and whatever lies above the last block, back to the kernel, which
    fills fresh pages with zeros at every step (benchmarks/plan.md). Larger blocks still go back, since the
    holes that they leave are as large as they. Other C libraries lack the call.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or chosen:
        return
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    if not mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK):
        mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK // 2)  # the most before glibc 2.35


def _groups(proc: Path) -> Iterator[tuple[Path, _Names]]:
    """Yield the folders of the process's groups and of all above them: each one's limit holds."""
    try:
        own = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, path in own:
        if controllers and "memory" not in controllers.split(","):
            continue
        names, kind = (_V1, "cgroup") if controllers else (_V2, "cgroup2")
        for mount in mounts:
            system = mount.index("-") + 1
            if mount[system] != kind or (controllers and "memory" not in mount[system + 2].split(",")):
                continue
            # A container may see only its own group, mounted as if it were the top.
            top, root = Path(mount[4]), PurePosixPath(mount[3])
            inside = PurePosixPath(path)
            below = inside.relative_to(root) if inside.is_relative_to(root) else PurePosixPath()
            yield from ((top / folder, names) for folder in (below, *below.parents))
