"""Two hosts on one network file system, each of which sees of the other what was true a minute ago."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost
from coatnet.runtime.ranks import Ranks

SERVER = Path("/usr/lib/openssh/sftp-server")
_SECONDS = 60  # as over NFS by default
_CACHES = ("dcache", "dcache_stat", "dcache_dir", "dcache_link", "entry", "negative", "attr")


@pytest.fixture
def views(tmp_path: Path) -> Iterator[list[Path]]:
    """One folder as two hosts see it, by sshfs without ssh."""
    if shutil.which("sshfs") is None or not SERVER.exists() or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no sshfs, sftp-server or /dev/fuse here")
    folder, shell = tmp_path / "server", tmp_path / "no-ssh"
    folder.mkdir()
    shell.write_text(f"#!/bin/sh\nexec {SERVER}\n")
    shell.chmod(0o755)
    options = ",".join([f"ssh_command={shell}", *(f"{cache}_timeout={_SECONDS}" for cache in _CACHES)])
    mounted = []
    try:
        for host in ("one", "other"):
            (tmp_path / host).mkdir()
            command = ["sshfs", "-o", options, f"server:{folder}", str(tmp_path / host)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("sshfs cannot be mounted here")
            mounted.append(tmp_path / host)
        yield mounted
    finally:
        for host in mounted:
            subprocess.run(["fusermount", "-u", str(host)], check=True)


def save(store: CheckpointStore, *, step: int, rank: int = 0, ranks: int = 1, wait: bool = True) -> None:
    piece = Fragment("weight", "w", (4 * ranks,), 4 * rank, torch.full((4,), float(step)))
    store.save(step=step, samples_seen=step, fragments=[piece], facts={}, wait=wait)


def test_a_job_that_another_host_has_taken_over_from_commits_nothing_by_its_old_view(
    views: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (view / "run" for view in views)
    one.mkdir()
    monkeypatch.setenv("COATNET_ATTEMPT", "7.1.1")
    first = Lease.acquire(one)
    former = CheckpointStore(one / "checkpoints", ranks=Ranks(), lease=first)
    save(former, step=1)
    assert os.listdir(one / "lease") == ["epoch-00000001"]
    monkeypatch.setenv("COATNET_ATTEMPT", "7.2.1")  # its next life, elsewhere
    second = Lease.acquire(other)
    latter = CheckpointStore(other / "checkpoints", ranks=Ranks(), lease=second)
    assert latter.steps() == [1]
    assert os.listdir(one / "lease") == ["epoch-00000001"], "this file system shows the truth at once"
    with pytest.raises(LeaseLost):
        save(former, step=2)
    save(latter, step=3)
    assert latter.steps() == [1, 3]
    first.release()
    second.release()


def test_a_second_start_on_another_host_hears_who_holds_the_run(views: list[Path]) -> None:
    one, other = (view / "run" for view in views)
    one.mkdir()
    lease = Lease.acquire(one)
    with pytest.raises(LeaseHeld, match=f"held by process {os.getpid()}"):
        Lease.acquire(other)
    lease.release()
    Lease.acquire(other).release()


def test_a_start_on_a_host_that_has_seen_the_run_before_resumes_from_what_was_saved_elsewhere(
    views: list[Path],
) -> None:
    one, other = (view / "run" for view in views)
    one.mkdir()
    save(CheckpointStore(one, ranks=Ranks()), step=1)
    assert os.listdir(one) == ["step-00000001"]
    save(CheckpointStore(other, ranks=Ranks()), step=2)
    assert os.listdir(one) == ["step-00000001"], "this file system shows the truth at once"
    newest = CheckpointStore(one, ranks=Ranks()).newest()
    assert newest is not None and newest.step == 2


def test_ranks_on_two_hosts_save_without_waiting_for_their_views(views: list[Path]) -> None:
    (views[0] / "run").mkdir()
    mailbox = HashStore()
    stores = [
        CheckpointStore(view / "run", ranks=Ranks(rank=rank, world_size=2, mailbox=mailbox))
        for rank, view in enumerate(views)
    ]
    began = time.monotonic()
    for step in (1, 2, 3):
        for rank, store in enumerate(stores):
            save(store, step=step, rank=rank, ranks=2, wait=False)
            time.sleep(0.2)  # rank 0 has begun to look for the other's file before that is there
        for store in stores:
            store.wait()
        assert stores[0].steps()[-1] == step
    assert time.monotonic() - began < _SECONDS
