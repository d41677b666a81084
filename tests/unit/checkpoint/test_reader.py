"""Reading a checkpoint as other ranks than wrote it, and what that asks of the file system."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint import reader
from coatnet.checkpoint.format import CheckpointError, Manifest, manifest_to_json, write_json, write_rank_file
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint

_RANKS, _TENSORS = 40, ("a", "b", "c")


def write_shared(folder: Path) -> Checkpoint:
    """Write what ranks that have two elements each of every tensor leave."""
    flat = torch.arange(2 * _RANKS, dtype=torch.float32)
    shares = list[list[Fragment]]()
    for begin in range(0, len(flat), 2):
        own = [Fragment("weight", name, (len(flat),), begin, flat[begin : begin + 2]) for name in _TENSORS]
        shares.append([*own, Fragment("exp_avg", "a", (len(flat),), begin, flat[begin : begin + 2])])
    return write(folder, shares)


def write(folder: Path, shares: list[list[Fragment]]) -> Checkpoint:
    files = [write_rank_file(folder / f"rank-{rank:05d}.safetensors", own) for rank, own in enumerate(shares)]
    manifest = Manifest(step=1, samples_seen=8, world_size=len(shares), epoch=1, files=tuple(files))
    write_json(folder / MANIFEST, manifest_to_json(manifest))
    return Checkpoint(folder)


def window(rank: int, *, ranks: int, elements: int) -> tuple[int, int]:
    """What a rank owns of a tensor at stage 3: equal parts, of which the last ones may be short or empty."""
    part = math.ceil(elements / ranks)
    return min(rank * part, elements), min((rank + 1) * part, elements)


@pytest.mark.parametrize(("writers", "readers"), [(64, 48), (48, 64), (5, 7), (1, 64), (64, 1)])
def test_whatever_number_of_ranks_wrote_any_other_reads_its_parts_of_tensors_small_and_large(
    tmp_path: Path, writers: int, readers: int
) -> None:
    tensors = {f"{count}": torch.randn(count) for count in (1, 3, 47, 48, 49, 63, 64, 65, 1000)}
    shares = list[list[Fragment]]()
    for rank in range(writers):
        shares.append([])
        for name, tensor in tensors.items():
            low, high = window(rank, ranks=writers, elements=len(tensor))
            if low < high:
                shares[-1].append(Fragment("weight", name, tuple(tensor.shape), low, tensor[low:high]))
    checkpoint = write(tmp_path, shares)
    for name, tensor in tensors.items():
        parts = [window(rank, ranks=readers, elements=len(tensor)) for rank in range(readers)]
        found = torch.cat([checkpoint.read("weight", name, low, high) for low, high in parts])
        assert torch.equal(found, tensor)


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
    monkeypatch.setattr(reader, "_MOST_HELD", 16)
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
