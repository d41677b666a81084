"""The memory that a job may have is its control group's, not the machine's."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from coatnet.runtime.memory import available_memory

MIB = 1 << 20
LIMIT, USED, FILES = 64 * MIB, 24 * MIB, 8 * MIB
UNBOUND = 9223372036854771712  # what version 1 says of a group without a limit
V1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes", "files": "total_inactive_file"}
V2 = {"limit": "memory.max", "usage": "memory.current", "files": "inactive_file"}


def job_of(place: Path, *, version: int, limits: dict[str, str], root: str = "/", path: str) -> Path:
    """Write what the kernel tells of a process in a group `path`, and the groups' folders below a mount."""
    top = place / "cgroup"
    names, mount, own = (
        (V1, "cgroup cgroup rw,memory", f"9:cpu:/elsewhere\n4:memory:{path}")
        if version == 1
        else (V2, "cgroup2 cgroup2 rw", f"0::{path}")
    )
    for folder, limit in limits.items():
        (top / folder).mkdir(parents=True, exist_ok=True)
        (top / folder / names["limit"]).write_text(f"{limit}\n")
        (top / folder / names["usage"]).write_text(f"{USED}\n")
        (top / folder / "memory.stat").write_text(f"cache {9 * MIB}\n{names['files']} {FILES}\n")
    proc = place / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(f"{own}\n")
    (proc / "mountinfo").write_text(
        f"31 23 0:28 / / rw - ext4 /dev/sda rw\n32 31 0:29 {root} {top} rw,nosuid shared:9 - {mount}\n"
    )
    return proc


@pytest.mark.parametrize(
    ("version", "limits", "root", "path"),
    [
        (1, {"slurm/job_7": str(LIMIT)}, "/", "/slurm/job_7"),
        (1, {"slurm/job_7": str(LIMIT), "slurm/job_7/step_0": str(UNBOUND)}, "/", "/slurm/job_7/step_0"),
        (2, {"job_7": str(LIMIT), "job_7/step_0/task_1": "max"}, "/", "/job_7/step_0/task_1"),
        (2, {"job_7": str(LIMIT), "job_7/step_0": str(2 * LIMIT)}, "/", "/job_7/step_0"),
        (2, {".": str(LIMIT)}, "/docker/abc", "/docker/abc"),
        (1, {".": str(LIMIT)}, "/docker/abc", "/"),
    ],
)
def test_a_jobs_memory_is_the_tightest_bound_of_its_groups(
    tmp_path: Path, version: int, limits: dict[str, str], root: str, path: str
) -> None:
    found = available_memory(job_of(tmp_path, version=version, limits=limits, root=root, path=path))
    assert found.total == LIMIT
    assert found.free == LIMIT - USED + FILES


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_bound_it_is_the_machines(tmp_path: Path, version: int) -> None:
    unbound = {1: str(UNBOUND), 2: "max"}[version]
    proc = job_of(tmp_path, version=version, limits={"job": unbound}, path="/job")
    assert available_memory(proc).total == psutil.virtual_memory().total


def test_where_the_kernel_tells_nothing_it_is_the_machines(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "nothing").total == psutil.virtual_memory().total


def test_this_processs_own_memory_is_known() -> None:
    found = available_memory()
    assert 0 < found.free <= found.total <= psutil.virtual_memory().total
