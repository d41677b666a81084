"""What has its name is on the disk: each file before it is renamed, each name before anybody goes by it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.whole_files import whole_file, write_whole

Synced = list[tuple[str, int | None]]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    """What is made durable, by name and with the bytes that a file has by then; and each renaming."""
    events: Synced = []
    fsync = os.fsync

    def noting_sync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append((path.name, path.stat().st_size if path.is_file() else None))

    def noting(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(old: Path, new: Path) -> Path:
            events.append((f"to {Path(new).name}", None))
            return move(old, new)

        return moved

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "rename", noting(Path.rename))
    monkeypatch.setattr(Path, "replace", noting(Path.replace))
    return events


def test_a_file_is_whole_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: Synced) -> None:
    write_whole(tmp_path / "small", b"content")
    assert synced == [(f".small.{os.getpid()}.tmp", 7), ("to small", None), (tmp_path.name, None)]
    synced.clear()
    with whole_file(tmp_path / "large.bin") as temporary:
        temporary.write_bytes(b"12345")
        assert not (tmp_path / "large.bin").exists()
    assert synced == [(temporary.name, 5), ("to large.bin", None), (tmp_path.name, None)]


def test_a_checkpoint_is_whole_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: Synced) -> None:
    store = CheckpointStore(tmp_path, ranks=Ranks())
    piece = Fragment("weight", "a", (4,), 0, torch.ones(4))
    store.save(step=1, samples_seen=1, fragments=[piece], facts={}, wait=True)
    sizes = {path.name: path.stat().st_size for path in store.path(1).iterdir()}
    folder = ".step-00000001.epoch0.save1.tmp"
    assert synced == [
        ("rank-00000.safetensors", sizes["rank-00000.safetensors"]),
        (folder, None),
        ("manifest.json", sizes["manifest.json"]),
        (folder, None),
        ("to step-00000001", None),
        (tmp_path.name, None),
    ]


def test_what_a_writer_that_was_killed_left_goes_with_the_next_one(tmp_path: Path) -> None:
    for name in (".large.1.tmp.bin", ".other.1.tmp.bin"):
        (tmp_path / name).touch()
    with whole_file(tmp_path / "large.bin"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.1.tmp.bin", "large.bin"]


def test_a_file_that_its_writer_made_for_the_owner_alone_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with whole_file(tmp_path / "large.bin") as temporary:
        temporary.write_bytes(b"1")
        temporary.chmod(0o600)
    assert (tmp_path / "large.bin").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device: '{path}'"),
        (OSError(errno.ENOENT, "No such file", "/source"), "[Errno 2] No such file: '/source'"),
        (OSError("12 requested and 4 written"), "12 requested and 4 written"),  # as numpy tells a full disk
        (ValueError("no such shape"), "no such shape"),
    ],
)
def test_of_a_file_that_could_not_be_written_nothing_is_left_and_the_former_one_stays(
    tmp_path: Path, error: Exception, told: str
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"former")
    with pytest.raises(type(error)) as caught, whole_file(path):
        raise error
    assert str(caught.value) == told.format(path=path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"former"]
