"""Each lease of a run has an epoch of its own, higher than all before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from coatnet.runtime import lease as lease_module
from coatnet.runtime.lease import Lease, LeaseHeld, LeaseLost
from coatnet.runtime.run_directory import RunDirectory


def test_a_released_lease_is_free_and_epochs_only_grow(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "epoch-copy").touch()
    for epoch in (1, 2, 3):
        lease = Lease.acquire(tmp_path)
        assert lease.epoch == epoch
        lease.release()


def test_an_epoch_that_another_took_after_the_look_is_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, others = Lease.require_free, []

    def slowly(directory: Path) -> int:
        epoch = look(directory)
        if not others:
            monkeypatch.undo()
            others.append(Lease.acquire(directory))
        return epoch

    monkeypatch.setattr(Lease, "require_free", staticmethod(slowly))
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
        Lease.acquire(tmp_path)
    others[0].check()
    others[0].release()


def test_a_holder_whose_file_its_successor_cannot_remove_finds_the_lease_lost_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease.acquire(tmp_path)
    monkeypatch.setattr(lease_module, "_is_alive", lambda *_: False)

    def refused(path: Path, **_: bool) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    second = Lease.acquire(tmp_path)
    assert second.epoch == 2 and (tmp_path / "lease" / "epoch-00000001").exists()
    second.check()
    with pytest.raises(LeaseLost):
        first.check()
    first.release()
    second.release()


def test_a_folder_that_cannot_be_listed_is_not_one_without_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Lease.acquire(tmp_path)

    def failing(path: Path) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", failing)
        patched.setattr(os, "scandir", failing)
        with pytest.raises(OSError, match="Input/output error"):
            Lease.acquire(tmp_path)
        with pytest.raises(OSError, match="Input/output error"):
            RunDirectory(tmp_path).find_checkpoints()
    holder.check()
    holder.release()
