"""A checkpoint exists wholly or not at all, is verified when read, and opens whatever wrote it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint import save as save_module
from coatnet.checkpoint.format import CheckpointError
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import Lease, LeaseLost
from coatnet.runtime.ranks import Ranks

WEIGHT = torch.arange(60, dtype=torch.float32).view(6, 10)


def fragments(scale: float = 1.0) -> list[Fragment]:
    flat = WEIGHT.flatten() * scale
    return [
        Fragment("weight", "a", (6, 10), 25, flat[25:]),
        Fragment("weight", "a", (6, 10), 0, flat[:25]),
        Fragment("exp_avg", "a", (6, 10), 0, flat / 2),
        Fragment("buffer", "count", (), 0, torch.tensor([7])),
        Fragment("weight", "half", (3,), 0, torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16)),
    ]


def make_store(directory: Path, **options: object) -> tuple[CheckpointStore, list[str]]:
    alarms: list[str] = []
    return CheckpointStore(directory, ranks=Ranks(), alarm=alarms.append, **options), alarms  # type: ignore[arg-type]


def save(store: CheckpointStore, step: int, **facts: object) -> None:
    store.save(step=step, samples_seen=step * 8, fragments=fragments(step), facts=dict(facts), wait=True)


def test_what_was_saved_is_read_back_whole_and_in_slices(tmp_path: Path) -> None:
    store, alarms = make_store(tmp_path)
    save(store, 3, model={"name": "x"})
    checkpoint = store.newest()
    assert checkpoint is not None and not alarms
    assert (checkpoint.step, checkpoint.samples_seen, checkpoint.facts) == (3, 24, {"model": {"name": "x"}})
    assert torch.equal(checkpoint.tensor("weight", "a"), WEIGHT * 3)
    assert torch.equal(checkpoint.read("weight", "a", 20, 30), (WEIGHT * 3).flatten()[20:30])
    assert checkpoint.tensor("buffer", "count").item() == 7
    assert checkpoint.tensor("weight", "half").dtype == torch.bfloat16


def test_a_rank_file_is_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    store, _ = make_store(tmp_path)
    save(store, 1)
    tensors = load_file(tmp_path / "step-00000001" / "rank-00000.safetensors")
    assert torch.equal(tensors["exp_avg/a/0"], WEIGHT.flatten() / 2)


def test_an_empty_directory_has_no_newest_checkpoint(tmp_path: Path) -> None:
    assert make_store(tmp_path)[0].newest() is None


@pytest.mark.slow
def test_no_flipped_bit_and_no_truncation_is_ever_accepted(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)
    directory = tmp_path / "step-00000001"
    chance = random.Random(0)
    for path in sorted(directory.iterdir()):
        whole = path.read_bytes()
        for _ in range(500):
            damaged = bytearray(whole)
            bit = chance.randrange(len(whole) * 8)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                Checkpoint(directory).verify()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                Checkpoint(directory).verify()
        path.write_bytes(whole + b"\0")
        with pytest.raises(CheckpointError):
            Checkpoint(directory).verify()
        path.write_bytes(whole)
    Checkpoint(directory).verify()


def test_a_rank_file_of_another_step_is_never_accepted(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    name = "rank-00000.safetensors"
    shutil.copy(tmp_path / "step-00000001" / name, tmp_path / "step-00000002" / name)
    with pytest.raises(CheckpointError, match="checksum"):
        Checkpoint(tmp_path / "step-00000002").verify()


def test_a_file_that_cannot_be_opened_is_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, alarms = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    opened = Path.open

    def failing(path: Path, *given: Any, **options: Any) -> Any:
        if path.parent.name == "step-00000002" and path.suffix == ".safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *given, **options)

    monkeypatch.setattr(Path, "open", failing)
    checkpoint = store.newest()
    assert checkpoint is not None and checkpoint.step == 1
    assert "rank-00000.safetensors: Input/output error; going back" in alarms[0]


def test_to_verify_a_file_it_is_opened_once_however_many_pieces_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)
    opened: list[str] = []
    open_file = Path.open

    def noting(path: Path, *given: Any, **options: Any) -> Any:
        opened.append(path.name)
        return open_file(path, *given, **options)

    monkeypatch.setattr(Path, "open", noting)
    store.newest()
    assert opened.count("rank-00000.safetensors") == 1


def test_a_broken_newest_is_named_and_the_older_one_taken(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    data = tmp_path / "step-00000002" / "rank-00000.safetensors"
    data.write_bytes(data.read_bytes()[:-4] + b"oops")
    store, alarms = make_store(tmp_path)
    newest = store.newest()
    assert newest is not None and newest.step == 1
    assert len(alarms) == 1 and "step-00000002" in alarms[0] and "older" in alarms[0]
    (aside,) = tmp_path.glob(".*")
    assert store.steps() == [1] and aside.name.startswith(".broken-step-00000002."), "out of the run's way"


def test_names_that_are_no_checkpoints_are_none(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)
    for name in ("step-copy", "step-", "7", "old-step-00000009", "step-2", "step-000000003", "step-²"):
        (tmp_path / name).mkdir()
    assert store.steps() == [1]


def test_a_run_never_starts_anew_over_checkpoints_that_are_all_broken(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)
    (tmp_path / "step-00000001" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not starting anew"):
        make_store(tmp_path)[0].newest()


def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_store(tmp_path)
    save(store, 1)

    def denied(path: Path) -> list[str]:  # root may read what others may not: chmod would not do
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(CheckpointError, match="Permission denied; make it readable"):
        store.newest()


@pytest.mark.parametrize("kind", ["weight", "ema", "buffer", "exp_avg_sq"])
def test_what_is_not_finite_is_not_committed(tmp_path: Path, kind: str) -> None:
    store, alarms = make_store(tmp_path)
    save(store, 1)
    bad = [Fragment(kind, "a", (2,), 0, torch.tensor([1.0, float("nan")]))]
    store.save(step=2, samples_seen=16, fragments=bad, facts={}, wait=True)
    assert store.steps() == [1]
    assert "not finite at step 2" in alarms[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def begin_a_save_that_fails(store: CheckpointStore) -> None:
    bad = [Fragment("weight", "a", (1,), 0, torch.tensor([float("inf")]))]
    store.save(step=2, samples_seen=16, fragments=bad, facts={})


def test_a_file_that_lost_its_end_before_the_commit_leaves_the_older_checkpoint_and_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, alarms = make_store(tmp_path)
    save(store, 1)
    write_manifest = save_module.write_json

    def cut_before(path: Path, value: object) -> None:
        if path.name == MANIFEST:
            os.truncate(path.with_name("rank-00000.safetensors"), 100)
        write_manifest(path, value)

    monkeypatch.setattr(save_module, "write_json", cut_before)
    save(store, 2)
    assert store.steps() == [1] and "rank-00000.safetensors" in alarms[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"], "nothing of it is left"


def test_a_save_that_failed_in_the_background_is_told_at_a_later_step_without_waiting(tmp_path: Path) -> None:
    store, alarms = make_store(tmp_path)
    begin_a_save_that_fails(store)
    assert store._pending is not None
    wait([store._pending], timeout=60.0)
    assert not alarms
    store.raise_errors()
    assert len(alarms) == 1 and "not finite" in alarms[0]
    store.raise_errors()
    assert len(alarms) == 1, "told once"


def test_a_step_does_not_wait_for_the_save_under_way(tmp_path: Path) -> None:
    store, alarms = make_store(tmp_path)
    gate = threading.Event()
    store._writer.submit(gate.wait)
    begin_a_save_that_fails(store)
    store.raise_errors()  # would wait for ever
    assert not alarms
    gate.set()
    store.wait()
    assert len(alarms) == 1


def test_closing_tells_of_a_save_that_failed_at_the_end(tmp_path: Path) -> None:
    store, alarms = make_store(tmp_path)
    begin_a_save_that_fails(store)
    store.close()
    assert len(alarms) == 1


@pytest.mark.slow
def test_a_lost_lease_is_told_at_the_next_step_without_a_save(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    store, _ = make_store(tmp_path / "checkpoints", lease=lease)
    store.raise_errors()
    (tmp_path / "lease" / "epoch-00000002").touch()
    assert lease._lost.wait(60.0)
    with pytest.raises(LeaseLost):
        store.raise_errors()
    lease.release()


def test_going_back_before_a_step_takes_the_one_before_and_abandons_the_later_ones(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    for step in (1, 2, 3):
        save(store, step)
    back = store.newest(before=3)
    assert back is not None and back.step == 2
    assert store.newest(before=1) is None, "no error: the caller knows what to do"
    store.abandon(after=2)
    assert store.steps() == [1, 2]
    save(store, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (1, 2, 3)]


def test_the_snapshot_is_taken_at_once_so_that_training_may_go_on(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    weights = torch.zeros(1000)
    store.save(step=1, samples_seen=8, fragments=[Fragment("weight", "a", (1000,), 0, weights)], facts={})
    weights.fill_(1.0)
    store.wait()
    newest = store.newest()
    assert newest is not None and not newest.tensor("weight", "a").any()


def test_two_snapshots_are_never_held_at_once(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    saved_before = []

    def pieces() -> Iterator[Fragment]:
        saved_before.append((store._pending, store.steps()))
        yield from fragments()

    for step in (1, 2):
        store.save(step=step, samples_seen=8, fragments=pieces(), facts={})
    store.wait()
    assert saved_before == [(None, []), (None, [1])]


def test_what_a_quick_rank_writes_for_the_next_save_is_left_alone(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    store._saves = 9
    late, early = (tmp_path / f".step-{n:08d}.epoch0.save{n}.tmp" for n in (9, 11))
    for folder in (late, early):
        folder.mkdir()
        (folder / "rank-00001.safetensors").touch()
    save(store, 10)
    assert early.exists() and not late.exists()


def test_a_fenced_writer_cannot_commit(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    store, _ = make_store(tmp_path / "checkpoints", lease=lease)
    save(store, 1)
    (tmp_path / "lease" / "epoch-00000002").touch()  # a newer job
    with pytest.raises(LeaseLost):
        save(store, 2)
    with pytest.raises(LeaseLost):
        store.abandon(after=0)
    assert store.steps() == [1]
    lease.release()


@pytest.mark.parametrize("leased", [True, False])
def test_a_writer_that_was_frozen_before_its_rename_replaces_nothing_of_its_successors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leased: bool
) -> None:
    lease = Lease.acquire(tmp_path)
    store, alarms = make_store(tmp_path / "checkpoints", lease=lease if leased else None)
    rename, successors = Path.rename, store.path(1)

    def late(path: Path, target: Path) -> Path:
        if target == successors:
            (tmp_path / "lease" / "epoch-00000002").touch()
            (successors / "theirs").mkdir(parents=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(LeaseLost) if leased else nullcontext():
        save(store, 1)
    assert [path.name for path in successors.iterdir()] == ["theirs"]
    assert leased or "not saved" in alarms[0]
    lease.release()


def test_a_new_job_removes_what_an_old_one_was_still_writing(tmp_path: Path) -> None:
    left = tmp_path / ".step-00000009.epoch1.save1.tmp"
    left.mkdir()
    (left / "rank-00000.safetensors").write_bytes(b"half")
    store, _ = make_store(tmp_path)
    assert not left.exists() and store.newest() is None


@pytest.mark.parametrize(("begin", "end", "lacks"), [(0, 25, 25), (10, 60, 0)])
def test_a_tensor_of_which_a_part_is_missing_is_named(
    tmp_path: Path, begin: int, end: int, lacks: int
) -> None:
    store, _ = make_store(tmp_path)
    piece = Fragment("weight", "a", (6, 10), begin, WEIGHT.flatten()[begin:end])
    store.save(step=1, samples_seen=8, fragments=[piece], facts={}, wait=True)
    checkpoint = store.newest()
    assert checkpoint is not None
    assert torch.equal(checkpoint.read("weight", "a", 10, 25), WEIGHT.flatten()[10:25])
    with pytest.raises(CheckpointError, match=f"weight a lacks elements from {lacks} on"):
        checkpoint.tensor("weight", "a")


def test_a_full_disk_leaves_the_older_checkpoint_and_the_run(
    tmp_path: Path, mounted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "small", "size=600k") as small:
        store, alarms = make_store(small)
        data = torch.ones(60_000)
        for step in (1, 2, 3):
            piece = Fragment("weight", "a", (60_000,), 0, data * step)
            store.save(step=step, samples_seen=step, fragments=[piece], facts={}, wait=True)
        assert store.steps() == [1, 2] and "free" in alarms[0]
        monkeypatch.setattr(save_module, "_require_space", lambda directory, all_bytes: None)
        piece = Fragment("weight", "a", (60_000,), 0, data)
        store.save(step=4, samples_seen=4, fragments=[piece], facts={}, wait=True)
        assert store.steps() == [1, 2] and "No space left" in alarms[1]
        assert sorted(path.name for path in small.iterdir()) == ["step-00000001", "step-00000002"]
        newest = store.newest()
        assert newest is not None and torch.equal(newest.tensor("weight", "a"), data * 2)
