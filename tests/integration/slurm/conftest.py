"""One cluster for all SLURM tests; installed where root may, skipped with the reason elsewhere."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from fake_cluster import DAEMONS, FakeCluster

ROOT = Path(__file__).parents[3]
_LONGEST = ("time_limit", "a_pipeline_goes", "four_ranks", "warned_run_saves_once", "three_lives")


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of scenarios that only the whole table runs."""
    config.addinivalue_line("markers", "every_scenario: run with COATNET_SLURM=all (benchmarks/slurm.md)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, since several run at once, and leave most of them to their own command."""
    items.sort(key=lambda item: not any(words in item.name for words in _LONGEST))
    if _every_scenario():
        return
    skip = pytest.mark.skip(reason="a long scenario; COATNET_SLURM=all runs the whole table")
    for item in items:
        if item.get_closest_marker("every_scenario"):
            item.add_marker(skip)


def _every_scenario() -> bool:
    return os.environ.get("COATNET_SLURM") == "all"


def _missing() -> list[str]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return [program for program in DAEMONS if shutil.which(program, path=path) is None]


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[FakeCluster]:
    """Bring up four nodes, and take them down when the last test has ended."""
    if _missing() and os.getuid() == 0:
        subprocess.run(["sh", str(ROOT / ".ci" / "system-packages")], check=False, timeout=600)
    if _missing():
        pytest.skip(f"no SLURM here ({', '.join(_missing())} missing) and it cannot be installed")
    if not os.access("/etc/hosts", os.W_OK):
        pytest.skip("the nodes' names cannot be written to /etc/hosts")
    cluster = FakeCluster(deadly=_every_scenario())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], str]], str]:
    """Let one of the processes that run tests make what all of them need."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # each worker has a folder in it

    def made(name: str, make: Callable[[], str]) -> str:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = folder / name
            if not path.exists():
                path.write_text(make())
            return path.read_text()

    return made
