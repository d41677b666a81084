"""Which checkpoints stay, and what becomes of the others."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.lease import Lease, LeaseLost
from coatnet.runtime.ranks import Ranks


def make_store(directory: Path, **options: Any) -> tuple[CheckpointStore, list[str]]:
    alarms: list[str] = []
    return CheckpointStore(directory, ranks=Ranks(), alarm=alarms.append, **options), alarms


def save(store: CheckpointStore, step: int, **facts: object) -> None:
    piece = Fragment("weight", "a", (60,), 0, torch.full((60,), float(step)))
    store.save(step=step, samples_seen=step * 8, fragments=[piece], facts=dict(facts), wait=True)


def test_of_equal_figures_the_first_is_the_best() -> None:
    kept = Retention(last=2, best="top1")
    figures = {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.6, 5: 0.6}
    assert kept.superfluous([1, 2, 3, 4, 5], verified={4, 5}, figures=figures) == [1, 3]


def test_only_superfluous_checkpoints_are_deleted(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path, retention=Retention(last=2, every_steps=4, best="top1"))
    for step, top1 in enumerate([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6], start=1):
        save(store, step, figures={"top1": top1})
    assert store.steps() == [2, 4, 6, 7]


def test_of_saves_that_go_by_the_clock_the_first_from_each_multiple_on_stays() -> None:
    kept = Retention(last=1, every_steps=100)
    steps = [37, 95, 148, 199, 260, 300, 351, 520, 580]
    gone = kept.superfluous(steps, verified={520, 580})
    assert [step for step in steps if step not in gone] == [148, 260, 300, 520, 580]


def test_a_checkpoint_without_the_figure_is_not_the_best(tmp_path: Path) -> None:
    store, alarms = make_store(tmp_path, retention=Retention(last=2, best="top1"))
    for step, figures in enumerate([{"top1": math.nan}, {"top1": 0.1}, {"loss": 3.0}, {}], start=1):
        save(store, step, figures=figures)
    assert store.steps() == [2, 3, 4] and alarms == []


def test_one_that_cannot_be_read_may_be_the_best_and_stays_while_the_others_go(tmp_path: Path) -> None:
    retention = Retention(last=1, best="top1")
    store, _ = make_store(tmp_path, retention=retention)
    for step, top1 in ((1, 0.9), (2, 0.1)):
        save(store, step, figures={"top1": top1})
    manifest = tmp_path / "step-00000001" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_text("torn")
    store, alarms = make_store(tmp_path, retention=retention)  # it knows no figure yet
    for step in (3, 4):
        save(store, step, figures={"top1": 0.2})
    assert store.steps() == [1, 3, 4]
    assert len(alarms) == 2 and f"{manifest}: not a sealed JSON document" in alarms[0]
    assert all("saved" not in one for one in alarms)
    manifest.write_bytes(whole)
    save(store, 5, figures={"top1": 0.3})
    assert store.steps() == [1, 4, 5] and len(alarms) == 2


def test_a_fenced_writer_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(tmp_path)
    store, _ = make_store(tmp_path / "checkpoints", retention=Retention(last=1), lease=lease)
    save(store, 1)
    save(store, 2)
    verify = Checkpoint.verify

    def slowly(checkpoint: Checkpoint) -> None:
        verify(checkpoint)
        (tmp_path / "lease" / "epoch-00000002").touch()  # a newer job, while this one was frozen

    monkeypatch.setattr(Checkpoint, "verify", slowly)
    with pytest.raises(LeaseLost):
        save(store, 3)
    assert store.steps() == [1, 2, 3]
    lease.release()


def test_what_the_disk_did_not_keep_of_a_new_checkpoint_is_told_before_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, alarms = make_store(tmp_path, retention=Retention(last=1))
    save(store, 1)
    save(store, 2)
    rename = Path.rename

    def lossy(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if target == store.path(3):
            os.truncate(target / "rank-00000.safetensors", 100)
        return moved

    monkeypatch.setattr(Path, "rename", lossy)
    save(store, 3)
    assert len(alarms) == 1 and "100 bytes" in alarms[0]
    assert store.steps() == [1, 2, 3]


def test_what_a_killed_process_was_about_to_delete_goes_with_the_next_save(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path)
    for name in (".deleted-00000001.5", ".broken-step-00000002.5", ".abandoned-step-00000003.5"):
        (tmp_path / name).mkdir()
    save(store, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_checkpoint_whose_elders_cannot_be_deleted_is_saved_and_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, alarms = make_store(tmp_path, retention=Retention(last=1))
    save(store, 1)
    save(store, 2)
    rename = Path.rename

    def refuse_graves(old: Path, new: Path) -> Path:
        if ".deleted-" in str(new):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", refuse_graves)
    save(store, 3)
    assert store.steps() == [1, 2, 3]
    assert len(alarms) == 1 and alarms[0].startswith("checkpoint 3 is saved, older ones could not be deleted")
    monkeypatch.undo()
    save(store, 4)
    assert store.steps() == [3, 4] and len(alarms) == 1


def test_nothing_is_deleted_before_two_newer_ones_were_verified() -> None:
    retention = Retention(last=1)
    assert retention.superfluous([1, 2, 3], verified={3}) == []
    assert retention.superfluous([1, 2, 3], verified={1, 3}) == [], "itself is no newer one"
    assert retention.superfluous([1, 2, 3], verified={2, 3}) == [1]


def test_abandoned_checkpoints_verify_nothing_and_are_deleted_after_the_next_save(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path, retention=Retention(last=1))
    for step in (10, 20, 30):
        save(store, step)
    store.abandon(after=20)
    save(store, 25)
    assert store.steps() == [20, 25], "one newer one is verified, and not two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000025"]


def test_the_figure_of_a_step_is_that_of_its_last_checkpoint(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path, retention=Retention(last=2, best="top1"))
    for step, top1 in ((1, 0.5), (2, 0.9)):
        save(store, step, figures={"top1": top1})
    store.abandon(after=1)
    for step in (2, 3, 4):
        save(store, step, figures={"top1": 0.2})
    assert store.steps() == [1, 3, 4]


def test_what_a_start_has_read_counts_as_verified(tmp_path: Path) -> None:
    for steps in ([1, 2], [3]):
        store, _ = make_store(tmp_path, retention=Retention(last=1))
        store.newest()
        for step in steps:
            save(store, step)
    assert store.steps() == [2, 3]
