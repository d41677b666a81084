"""submit and cancel where a run directory takes nothing more; a limit on the size of files plays the disk."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import snapshot
from cluster.cancel import cancel_run
from cluster.site import SiteConfig
from cluster.submission import Request, prepare, submit
from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory

Program = Callable[[str, str], None]


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """Let every write beyond it fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_submission_without_room_for_the_code_names_the_run_and_leaves_nothing_that_fills_it(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("scontrol", "echo PartitionName=gpu Default=YES MaxTime=UNLIMITED State=UP TotalNodes=16")
    program("squeue", "")
    monkeypatch.setattr(snapshot, "PACKAGES", ("cluster",))
    directory = tmp_path / "run"
    prepared = prepare(Request("shard", "photos", ("shards",), SiteConfig(), directory=directory))
    with no_file_larger_than(1000), pytest.raises(UserError, match=f"^{directory}: File too large; mend"):
        submit(prepared)
    assert list(prepared.folder.parent.iterdir()) == []


def test_a_run_that_cannot_be_marked_is_ended_all_the_same(run: Path, program: Program) -> None:
    program("squeue", "echo '7|7|N/A|RUNNING|None|N/A|(null)|'")
    program("scancel", "")
    with no_file_larger_than(0), pytest.raises(UserError, match=r"not marked .*too large\); jobs ended: 7$"):
        cancel_run(run)
    assert RunDirectory(run).marker("cancelled") is None
