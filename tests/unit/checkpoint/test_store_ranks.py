"""What ranks agree on when they open a run's checkpoints: two of them, as threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from coatnet.checkpoint.format import CheckpointError, RankFile
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import Lease
from coatnet.runtime.ranks import Ranks

RANKS = 2


class Exchange:
    """Where all ranks leave a value and take everybody's."""

    def __init__(self) -> None:
        self._values: list[Any] = [None] * RANKS
        self._barrier = Barrier(RANKS, timeout=60.0)

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found


@dataclass(frozen=True)
class Linked(Ranks):
    """A rank whose collectives go over an exchange instead of a process group."""

    exchange: Exchange = field(default_factory=Exchange, compare=False)

    def gather(self, value: Any) -> list[Any]:
        return self.exchange(self.rank, value)

    def broadcast(self, value: Any) -> Any:
        return self.exchange(self.rank, value)[0]


class Pair:
    """The stores of both ranks."""

    def __init__(self, directory: Path, *, lease: Lease | None = None) -> None:
        mailbox, exchange = HashStore(), Exchange()
        self.alarms: list[str] = []
        ranks = [Linked(rank, RANKS, mailbox=mailbox, exchange=exchange) for rank in range(RANKS)]
        self._threads = ThreadPoolExecutor(RANKS)
        self.stores = list(
            self._threads.map(
                lambda own: CheckpointStore(
                    directory,
                    ranks=own,
                    lease=lease if own.is_main else None,
                    alarm=self.alarms.append,
                    timeout_seconds=60.0,
                ),
                ranks,
            )
        )

    def both(self, act: Callable[[CheckpointStore], Any]) -> list[Any]:
        """Let both ranks do something at once, and return what came of it or the error."""

        def tried(store: CheckpointStore) -> Any:
            try:
                return act(store)
            except CheckpointError as error:
                return str(error)

        return list(self._threads.map(tried, self.stores))

    def save(self, step: int) -> None:
        for rank, store in enumerate(self.stores):
            piece = Fragment("weight", "a", (8 * RANKS,), 8 * rank, torch.full((8,), float(step)))
            store.save(step=step, samples_seen=step, fragments=[piece], facts={})
        for store in self.stores:
            store.wait()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path)
    for step in (1, 2):
        made.save(step)
    return made


def test_a_checkpoint_holds_its_manifest_and_a_file_of_every_rank(pair: Pair, tmp_path: Path) -> None:
    names = sorted(path.name for path in (tmp_path / "step-00000002").iterdir())
    assert names == ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_file_that_one_rank_finds_damaged_sends_all_back_and_is_told_and_set_aside_once(
    pair: Pair, tmp_path: Path, rank: int
) -> None:
    file = tmp_path / "step-00000002" / f"rank-{rank:05d}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert pair.both(lambda store: store.newest().step) == [1, 1]  # type: ignore[union-attr]
    (alarm,) = pair.alarms
    assert file.name in alarm and alarm.endswith("; going back to an older checkpoint")
    assert [path.name.partition(".step")[0] for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_what_the_first_rank_cannot_list_stops_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    first, second = pair.both(CheckpointStore.newest)
    assert first == second and first.endswith("Permission denied; make it readable")


def test_of_the_files_each_rank_looks_at_its_share_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    for name in ("_check_size", "_verify_file"):
        look = getattr(Checkpoint, name)

        def noting(own: Checkpoint, file: RankFile, *given: Any, look: Any = look, name: str = name) -> None:
            seen.append((name, file.name))
            look(own, file, *given)

        monkeypatch.setattr(Checkpoint, name, noting)
    found = pair.both(lambda store: store.newest())
    assert [one.step for one in found] == [2, 2]
    files = ("rank-00000.safetensors", "rank-00001.safetensors")
    assert sorted(seen) == [(name, file) for name in ("_check_size", "_verify_file") for file in files]


def test_who_reads_alone_looks_at_the_files_of_all_ranks(pair: Pair) -> None:
    folder = pair.stores[0].path(2)
    file = folder / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    checkpoint = Checkpoint(folder)
    assert (checkpoint.read("weight", "a", 0, 8) == 2.0).all()
    for use in (lambda: checkpoint.read("weight", "a", 8, 16), checkpoint.verify):
        with pytest.raises(CheckpointError, match=rf"{file.name}: weight a does not match its checksum"):
            use()
    os.truncate(file, 100)
    with pytest.raises(CheckpointError, match=f"{file.name}: 100 bytes"):
        Checkpoint(folder)


def test_all_ranks_write_under_the_epoch_of_the_lease_that_the_first_one_holds(tmp_path: Path) -> None:
    for epoch in (1, 2):
        lease = Lease.acquire(tmp_path)
        pair = Pair(tmp_path / "checkpoints", lease=lease)
        pair.save(epoch)
        lease.release()
        assert pair.alarms == []
        assert Checkpoint(pair.stores[0].path(epoch)).manifest.epoch == epoch


def test_a_rank_that_opens_the_store_late_removes_nothing_of_the_save_under_way(tmp_path: Path) -> None:
    under_way = tmp_path / ".step-00000001.epoch0.save1.tmp"
    under_way.mkdir()
    CheckpointStore(tmp_path, ranks=Ranks(1, RANKS))
    assert under_way.exists()


def test_a_directory_of_an_earlier_job_is_removed_though_it_bears_our_epoch(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-00000001.epoch1.save1.tmp"
    left.mkdir(parents=True)
    (left / "rank-00000.safetensors").touch()
    lease = Lease.acquire(tmp_path)  # a power cut took the earlier one's file
    pair = Pair(tmp_path / "checkpoints", lease=lease)
    pair.save(1)
    assert pair.stores[0].steps() == [1] and pair.alarms == []
    lease.release()


def test_what_another_job_commits_while_it_is_fenced_out_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = tmp_path / ".step-00000001.epoch1.save1.tmp"
    under_way.mkdir()
    rename = Path.rename

    def late(old: Path, new: Path) -> Path:
        if ".deleted-" in str(new):
            rename(under_way, tmp_path / "step-00000001")
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", late)
    assert CheckpointStore(tmp_path, ranks=Ranks()).steps() == [1]
