"""Batch norm over ranks, with real gloo processes, against one process that holds all images."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[1] / "programs" / "sync_norm.py"
TIMEOUT_SECONDS = 120


def load_program():
    spec = importlib.util.spec_from_file_location("sync_norm", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_ranks(sync: str, directory: Path, *, world: int, local: int) -> list[dict[str, torch.Tensor]]:
    environment = {**os.environ, "LOCAL_WORLD_SIZE": str(local), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, PROGRAM, sync, directory, str(rank), str(world)], env=environment)
        for rank in range(world)
    ]
    try:
        assert [rank.wait(TIMEOUT_SECONDS) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize(
    ("sync", "world", "local", "together"),
    [
        ("all", 2, 1, [[0, 1]]),
        ("node", 4, 2, [[0, 1], [2, 3]]),
        ("none", 2, 2, [[0], [1]]),
    ],
)
def test_ranks_that_sync_compute_what_one_process_with_all_their_images_does(
    tmp_path: Path, sync: str, world: int, local: int, together: list[list[int]]
) -> None:
    program = load_program()
    results = run_ranks(sync, tmp_path, world=world, local=local)
    for ranks in together:
        group = program.GROUP
        for number in range(program.IMAGES_PER_RANK // group):
            part = slice(number * group, (number + 1) * group)
            images = torch.cat([program.rank_images(rank)[part] for rank in ranks]).requires_grad_()
            norm = program.make_norm("none", group_images=len(images))
            y = norm(images)
            program.loss_of(y, images).backward()
            for place, rank in enumerate(ranks):
                own = slice(place * group, (place + 1) * group)
                for form in ("", "settled_"):
                    found_y, gradient = (results[rank][form + key][part] for key in ("y", "gradient"))
                    assert torch.allclose(found_y, y[own], atol=1e-5)
                    assert torch.allclose(gradient, images.grad[own], rtol=1e-4, atol=1e-4)
    for result in results:
        for key in ("mean", "variance"):
            assert torch.equal(result[key], results[0][key]), "running statistics differ between ranks"
            assert torch.allclose(result["settled_" + key], result[key], rtol=1e-5)
