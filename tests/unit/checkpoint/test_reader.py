"""What reading a checkpoint asks of the file system."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint.format import CheckpointError, Manifest, write_json, write_rank_file
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint

_RANKS, _TENSORS = 40, ("a", "b", "c")


def write_shared(folder: Path) -> Checkpoint:
    """Write what ranks that have two elements each of every tensor leave."""
    flat = torch.arange(2 * _RANKS, dtype=torch.float32)
    files = []
    for rank in range(_RANKS):
        begin = 2 * rank
        own = [Fragment("weight", name, (len(flat),), begin, flat[begin : begin + 2]) for name in _TENSORS]
        own.append(Fragment("exp_avg", "a", (len(flat),), begin, flat[begin : begin + 2]))
        files.append(write_rank_file(folder / f"rank-{rank:05d}.safetensors", own))
    manifest = Manifest(step=1, samples_seen=8, world_size=_RANKS, epoch=1, files=tuple(files))
    write_json(folder / MANIFEST, asdict(manifest))
    return Checkpoint(folder)


def test_few_files_are_held_open_and_none_behind_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, opened, open_file = write_shared(tmp_path), list[Any](), Path.open
    most = 0

    def noting(path: Path, *given: Any, **options: Any) -> Any:
        nonlocal most
        opened.append(open_file(path, *given, **options))
        most = max(most, sum(not one.closed for one in opened))
        return opened[-1]

    monkeypatch.setattr(Path, "open", noting)
    with checkpoint.held_open():
        for begin in range(0, 2 * _RANKS, 20):
            for name in _TENSORS:
                assert checkpoint.read("weight", name, begin, begin + 20).tolist() == [
                    *range(begin, begin + 20)
                ]
    assert len(opened) == _RANKS and most == 16 and all(one.closed for one in opened)
    checkpoint.read("weight", "a", 0, 2)
    assert len(opened) == _RANKS + 1 and opened[-1].closed, "outside of it as before"


def test_what_nobody_wants_to_use_is_not_read_to_verify_the_rest(tmp_path: Path) -> None:
    checkpoint = write_shared(tmp_path)
    file = checkpoint.manifest.files[7]
    content = bytearray((tmp_path / file.name).read_bytes())
    content[file.pieces[-1].offset] ^= 1
    (tmp_path / file.name).write_bytes(content)
    checkpoint.verify(kinds=("weight", "buffer"))
    for act in (checkpoint.verify, lambda: checkpoint.read("exp_avg", "a")):
        with pytest.raises(CheckpointError, match=r"rank-00007.safetensors: exp_avg a does not match"):
            act()
