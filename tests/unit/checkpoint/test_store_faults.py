"""Every write, fsync, rename and mkdir of a save made to fail, one after the other, and all from one on."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from coatnet.checkpoint import save as save_module
from coatnet.checkpoint.format import CheckpointError
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import LeaseLost
from coatnet.runtime.ranks import Ranks

RANKS = 2
CALLS = ("write", "fsync", "rename", "mkdir", "unlink", "rmdir")


class Faults:
    """The system calls of os, which fail from the `first` to the `last` one made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.first, self.last, self.number = 0, 1, 0, errno.ENOSPC
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            self.made += 1
            if self.first <= self.made <= self.last:
                raise OSError(self.number, os.strerror(self.number))
            return real(*given, **options)

        return call

    def arm(self, *, first: int, last: int, number: int) -> None:
        """Count from here."""
        self.made, self.first, self.last, self.number = 0, first, last, number


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    yield Faults(monkeypatch)


def save(stores: list[CheckpointStore], step: int) -> None:
    """Save on both ranks at once, as a run does."""
    for rank, store in enumerate(stores):
        data = torch.full((8,), float(step))
        piece = Fragment("weight", "a", (8 * RANKS,), 8 * rank, data)
        store.save(step=step, samples_seen=step, fragments=[piece], facts={})
    for store in stores:
        store.wait()


def newest_step(directory: Path) -> int:
    """Open the newest checkpoint as a later start does, and look into it."""
    newest = CheckpointStore(directory, ranks=Ranks(), alarm=lambda text: None).newest()
    assert newest is not None
    assert (newest.tensor("weight", "a") == float(newest.step)).all()
    return newest.step


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True], ids=["one call", "all calls from one on"])
def test_whichever_call_of_a_save_fails_the_run_goes_on_and_a_whole_checkpoint_opens(
    tmp_path: Path, faults: Faults, lasting: bool, number: int
) -> None:
    base = tmp_path / "base"
    stores = open_stores(base, alarms=[])
    save(stores, 1)
    save(stores, 2)
    failed_at, call, made = [], 0, 1
    while call < made:
        call += 1
        directory, alarms = tmp_path / str(call), []
        shutil.copytree(base, directory)
        stores = open_stores(directory, alarms=alarms)
        assert stores[0].newest() is not None
        faults.arm(first=call, last=10**9 if lasting else call, number=number)
        save(stores, 3)
        made = max(made, faults.made)
        faults.arm(first=1, last=0, number=number)
        assert newest_step(directory) in (2, 3), (call, alarms)
        if alarms:
            failed_at.append(call)
        again = open_stores(directory, alarms=[]) if lasting else stores
        save(again, 4)
        assert newest_step(directory) == 4, (call, alarms)
        assert all(path.name.startswith("step-") for path in directory.iterdir()), [*directory.iterdir()]
    assert made > 15 and len(failed_at) > made // 2


def test_a_rank_whose_save_failed_is_named_by_the_first_at_once(tmp_path: Path) -> None:
    alarms: list[str] = []
    stores = open_stores(tmp_path, alarms=alarms, timeout_seconds=3600.0)
    for rank, (store, value) in enumerate(zip(stores, (1.0, float("nan")), strict=True)):
        piece = Fragment("weight", "a", (8 * RANKS,), 8 * rank, torch.full((8,), value))
        store.save(step=1, samples_seen=1, fragments=[piece], facts={})
    for store in stores:
        store.wait()
    fault = "weight a is not finite at step 1"
    told = [
        f"checkpoint not saved: {one}; the older one stays, the run goes on"
        for one in (f"rank 1: {fault}", fault)
    ]
    assert alarms == told and stores[0].steps() == []
    save(stores, 2)
    assert newest_step(tmp_path) == 2 and len(alarms) == 2


def test_what_other_ranks_wrote_for_a_save_that_had_failed_makes_room_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms: list[str] = []
    stores = open_stores(tmp_path, alarms=alarms)
    for rank, value in enumerate((float("nan"), 1.0)):  # the first one has given up when the other begins
        piece = Fragment("weight", "a", (8 * RANKS,), 8 * rank, torch.full((8,), value))
        stores[rank].save(step=1, samples_seen=1, fragments=[piece], facts={}, wait=True)
    assert [path.name for path in tmp_path.glob("*/*")] == ["rank-00001.safetensors"] and len(alarms) == 1
    asked = threading.Event()

    def full(folder: Path) -> Any:
        asked.set()
        return SimpleNamespace(f_bavail=0 if [*folder.glob("*.save1.tmp")] else 1, f_frsize=2**20)

    monkeypatch.setattr(os, "statvfs", full)
    for rank, store in enumerate(stores):
        piece = Fragment("weight", "a", (8 * RANKS,), 8 * rank, torch.full((8,), 2.0))
        store.save(step=2, samples_seen=2, fragments=[piece], facts={})
        assert asked.wait(60.0)
    for store in stores:
        store.wait()
    assert newest_step(tmp_path) == 2 and len(alarms) == 1


def test_a_rank_whose_write_fails_leaves_no_file_where_the_first_one_waits_no_more(
    tmp_path: Path, faults: Faults
) -> None:
    _, second = open_stores(tmp_path, alarms=[])
    faults.arm(first=2, last=2, number=errno.EIO)  # the file's first write
    piece = Fragment("weight", "a", (8 * RANKS,), 8, torch.ones(8))
    second.save(step=1, samples_seen=1, fragments=[piece], facts={}, wait=True)
    assert [*tmp_path.glob("*/*")] == []


def test_a_rank_that_never_writes_is_given_up_after_a_while(tmp_path: Path) -> None:
    alarms: list[str] = []
    first, _ = open_stores(tmp_path, alarms=alarms, timeout_seconds=0.05)
    piece = Fragment("weight", "a", (8 * RANKS,), 0, torch.ones(8))
    first.save(step=1, samples_seen=1, fragments=[piece], facts={}, wait=True)
    assert len(alarms) == 1 and "rank 1 did not write within" in alarms[0]
    assert first.steps() == []


class Mailbox:
    """Words that are there only from the fourth look on; before that, something else may happen."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._words, self._looks, self._meanwhile = HashStore(), 0, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._words, name)

    def check(self, keys: list[str]) -> bool:
        self._looks += 1
        self._meanwhile()
        return self._looks > 3 and self._words.check(keys)


def test_a_slow_rank_is_waited_for(tmp_path: Path) -> None:
    alarms: list[str] = []
    stores = open_stores(tmp_path, alarms=alarms, mailbox=Mailbox())
    save(stores, 1)
    assert stores[0].steps() == [1] and alarms == []


def test_a_rank_that_was_suspended_with_the_first_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module, "Absence", lambda **_: SimpleNamespace(seconds=lambda: 3600.0))
    alarms: list[str] = []
    stores = open_stores(tmp_path, alarms=alarms, timeout_seconds=-1800.0, mailbox=Mailbox())
    save(stores, 1)
    assert stores[0].steps() == [1] and alarms == []


def test_a_rank_that_is_quicker_than_the_first_one_keeps_what_it_wrote(tmp_path: Path) -> None:
    alarms: list[str] = []
    stores = open_stores(tmp_path, alarms=alarms)
    for rank, step in ((1, 1), (1, 2), (0, 1), (0, 2)):
        piece = Fragment("weight", "a", (8 * RANKS,), 8 * rank, torch.full((8,), float(step)))
        stores[rank].save(step=step, samples_seen=step, fragments=[piece], facts={}, wait=True)
    assert stores[0].steps() == [1, 2] and newest_step(tmp_path) == 2 and alarms == []


def test_a_save_needs_room_for_what_all_ranks_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mebibytes, fits in ((8 * RANKS, False), (8 * RANKS + 1, True)):
        room = SimpleNamespace(f_bavail=mebibytes, f_frsize=2**20)
        monkeypatch.setattr(os, "statvfs", lambda _, room=room: room)
        alarms: list[str] = []
        stores = open_stores(tmp_path, alarms=alarms)
        for rank, store in enumerate(stores):
            piece = Fragment("weight", "a", (RANKS << 21,), rank << 21, torch.ones(1 << 21))
            store.save(step=1, samples_seen=1, fragments=[piece], facts={})
        for store in stores:
            store.wait()
        assert (stores[0].steps() == [1]) is fits and len(alarms) == (0 if fits else RANKS)


def test_who_waits_for_a_rank_sees_that_a_newer_job_removed_what_was_written(tmp_path: Path) -> None:
    def remove() -> None:
        for folder in tmp_path.glob(".step-*"):
            shutil.rmtree(folder)

    first, _ = open_stores(tmp_path, alarms=[], mailbox=Mailbox(remove))
    piece = Fragment("weight", "a", (8 * RANKS,), 0, torch.ones(8))
    with pytest.raises(LeaseLost, match="was removed by a newer job"):
        first.save(step=1, samples_seen=1, fragments=[piece], facts={}, wait=True)


def open_stores(
    directory: Path, *, alarms: list[str], timeout_seconds: float = 60.0, mailbox: Any = None
) -> list[CheckpointStore]:
    """Open the store of both ranks in this process."""
    mailbox = mailbox or HashStore()
    return [
        CheckpointStore(
            directory,
            ranks=Ranks(rank=rank, world_size=RANKS, mailbox=mailbox),
            retention=Retention(last=2),
            timeout_seconds=timeout_seconds,
            alarm=alarms.append,
        )
        for rank in range(RANKS)
    ]


def test_a_disk_that_cannot_read_the_newest_checkpoint_any_more_costs_that_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms: list[str] = []
    store = CheckpointStore(tmp_path, ranks=Ranks.single(), alarm=alarms.append)
    for step in (1, 2):
        piece = Fragment("weight", "a", (8,), 0, torch.full((8,), float(step)))
        store.save(step=step, samples_seen=step, fragments=[piece], facts={}, wait=True)
    bad = store.path(2) / "rank-00000.safetensors"
    preadv = os.preadv

    def with_a_bad_block(descriptor: int, *given: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, *given)

    monkeypatch.setattr(os, "preadv", with_a_bad_block)
    found = store.newest()
    assert found is not None and found.step == 1
    assert alarms == [f"{bad}: Input/output error; going back to an older checkpoint"]


def test_a_file_that_is_cut_short_after_its_size_was_seen_is_refused_and_kills_nobody(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ranks=Ranks.single())
    piece = Fragment("weight", "a", (8,), 0, torch.ones(8))
    store.save(step=1, samples_seen=1, fragments=[piece], facts={}, wait=True)
    checkpoint, file = Checkpoint(store.path(1)), store.path(1) / "rank-00000.safetensors"
    left = file.stat().st_size - 4
    os.truncate(file, left)
    for use in (checkpoint.verify, lambda: checkpoint.tensor("weight", "a")):
        with pytest.raises(CheckpointError, match=f"rank-00000.safetensors: ends at byte {left}"):
            use()
