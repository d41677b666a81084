"""What it costs a rank to open a checkpoint that another number of ranks wrote, at any ZeRO stage.

Writes the files one after the other as so many ranks would, with the store's own writers, and loads the part
of some ranks of another world; the elements tell their own place, and are compared.

    .venv/bin/python benchmarks/reshard.py --writers 64 --readers 48 --stage 3
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from coatnet.checkpoint import reader
from coatnet.checkpoint.format import Manifest, manifest_to_json, write_json, write_rank_file
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.training.optimizer import parameter_groups

KINDS = ("exp_avg", "exp_avg_sq", "weight", "ema")
Window = tuple[str, tuple[int, ...], int, int]  # of a parameter: name, whole shape, start, end
Groups = list[list[tuple[str, tuple[int, ...]]]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="coatnet_0")
    options.add_argument("--writers", type=int, default=64)
    options.add_argument("--readers", type=int, default=48)
    options.add_argument("--stage", type=int, default=1)
    options.add_argument("--stage-now", type=int, help="that of the readers, if it is another")
    given = options.parse_args()
    groups = parameters(given.model)
    now = given.stage if given.stage_now is None else given.stage_now
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        write(Path(folder), groups, ranks=given.writers, stage=given.stage)
        print(json.dumps({"written in CPU s": round(time.process_time() - begun, 2), **vars(given)}))
        for rank in sorted({0, given.readers // 2, given.readers - 1}):
            found = read(Path(folder), [*windows(groups, stage=now, rank=rank, ranks=given.readers)])
            print(json.dumps({"rank": rank, **found}))


def parameters(model: str) -> Groups:
    """Return names and shapes, in the optimizer's groups."""
    network = build_model(ModelConfig(name=model), device="meta")
    names = {id(one): name for name, one in network.named_parameters()}
    groups = parameter_groups(network, 0.05)
    return [[(names[id(one)], tuple(one.shape)) for one in group["params"]] for group in groups]


def windows(groups: Groups, *, stage: int, rank: int, ranks: int) -> Iterator[Window]:
    """Yield what a rank owns: at stage 3 of each parameter, below of the line of each group."""
    lines = [[one for group in groups for one in group]] if stage == 0 else groups
    for line in lines:
        total, offset = sum(math.prod(shape) for _, shape in line), 0
        if stage == 0:
            first, end = total * rank // ranks, total * (rank + 1) // ranks
        else:
            part = math.ceil(total / ranks)
            first, end = part * rank, part * (rank + 1)
        for name, shape in line:
            count = math.prod(shape)
            if stage == 3:
                part = math.ceil(count / ranks)
                first, end, offset = part * rank, part * (rank + 1), 0
            low, high = max(first - offset, 0), min(end - offset, count)
            if low < high:
                yield name, shape, low, high
            offset += count


def write(folder: Path, groups: Groups, *, ranks: int, stage: int) -> None:
    """Write a checkpoint in which each element of each tensor is its own place in it."""
    largest = max(math.prod(shape) for group in groups for _, shape in group)
    places = torch.arange(largest, dtype=torch.float32)
    files = []
    for rank in range(ranks):
        own = [
            Fragment(kind, name, shape, low, places[low:high])
            for name, shape, low, high in windows(groups, stage=stage, rank=rank, ranks=ranks)
            for kind in KINDS
        ]
        with mock.patch("os.fsync"):
            files.append(write_rank_file(folder / f"rank-{rank:05d}.safetensors", own))
    manifest = Manifest(step=1, samples_seen=1, world_size=ranks, epoch=1, files=tuple(files))
    write_json(folder / MANIFEST, manifest_to_json(manifest))


def read(folder: Path, own: list[Window]) -> dict[str, Any]:
    """Open a checkpoint and load windows, as `ShardedState` does; return what that took."""
    asked, open_file, read_into = Counter[str](), Path.open, reader.read_into

    def opening(path: Path, *given: Any, **options: Any) -> Any:
        asked["files opened"] += 1
        return open_file(path, *given, **options)

    def reading(opened: Any, offset: int, memory: memoryview) -> None:
        asked["reads"] += 1
        asked["bytes"] += len(memory)
        read_into(opened, offset, memory)

    begun = time.process_time()
    checkpoint = Checkpoint(folder, share=0, shares=len(own))
    opened = time.process_time()
    wanted = sum(high - low for _, _, low, high in own) * len(KINDS) * 4
    watched = mock.patch.object(Path, "open", opening), mock.patch.object(reader, "read_into", reading)
    with watched[0], watched[1], checkpoint.held_open():
        for name, _, low, high in own:
            for kind in KINDS:
                found = checkpoint.read(kind, name, low, high)
                assert torch.equal(found, torch.arange(low, high, dtype=torch.float32)), (kind, name)
    return {
        "manifest MB": round((folder / MANIFEST).stat().st_size / 1e6, 1),
        "manifest read in CPU s": round(opened - begun, 2),
        "own MB": round(wanted / 1e6, 2),
        "read of own bytes": round(asked.pop("bytes") / wanted, 2),
        **asked,
        "loaded in CPU s": round(time.process_time() - opened, 2),
    }


if __name__ == "__main__":
    main()
