"""The store on file systems that refuse what others do: an image's layers, no inode left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.retention import Retention
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks

WEIGHT = torch.arange(100, dtype=torch.float32)


def make_store(directory: Path) -> tuple[CheckpointStore, list[str]]:
    alarms: list[str] = []
    store = CheckpointStore(
        directory, ranks=Ranks(), retention=Retention(last=2), alarm=alarms.append, timeout_seconds=60.0
    )
    return store, alarms


def save(store: CheckpointStore, step: int) -> None:
    piece = Fragment("weight", "a", (100,), 0, WEIGHT * step)
    store.save(step=step, samples_seen=step, fragments=[piece], facts={}, wait=True)


def newest(store: CheckpointStore) -> int:
    checkpoint = store.newest()
    assert checkpoint is not None
    assert torch.equal(checkpoint.tensor("weight", "a"), WEIGHT * checkpoint.step)
    return checkpoint.step


@pytest.fixture
def container(tmp_path: Path, mounted: Any) -> Iterator[Path]:
    """A run's checkpoints 1, 2 and 3 in an image's layer, of which the newest is broken, and a leftover."""
    with mounted(tmp_path / "disk", "size=16m") as disk:
        layers = [disk / name for name in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        image = layers[0] / "checkpoints"
        store, _ = make_store(image)
        for step in (1, 2, 3):
            save(store, step)
        shutil.copytree(image / "step-00000002", image / "step-00000001")  # what retention had removed
        (image / ".step-00000004.epoch1.save1.tmp").mkdir()
        (image / "step-00000003" / "manifest.json").write_text("torn")
        lower, upper, work = layers
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        with mounted(tmp_path / "container", options, kind="overlay") as merged:
            yield merged / "checkpoints"


def test_a_run_that_goes_on_in_a_container_moves_and_removes_what_the_image_holds(container: Path) -> None:
    store, alarms = make_store(container)
    assert newest(store) == 2
    assert len(alarms) == 1 and "going back to an older" in alarms[0]
    for step in (3, 4):
        save(store, step)
    assert newest(store) == 4 and len(alarms) == 1
    assert sorted(path.name for path in container.iterdir()) == ["step-00000003", "step-00000004"]


def test_no_inode_left_fails_the_save_alone(tmp_path: Path, mounted: Any) -> None:
    with mounted(tmp_path / "disk", "size=16m,nr_inodes=24") as disk:
        store, alarms = make_store(disk / "checkpoints")
        save(store, 1)
        ballast = disk / "ballast"
        ballast.mkdir()
        number = 0
        while os.statvfs(disk).f_ffree > 2:  # a folder and a file, but no note of it
            (ballast / str(number)).touch()
            number += 1
        save(store, 2)
        assert len(alarms) == 1 and "No space left" in alarms[0] and newest(store) == 1
        shutil.rmtree(ballast)
        save(store, 2)
        assert len(alarms) == 1 and newest(store) == 2
