"""The code that runs on a GPU alone, on a CUDA device whose memory is the host's (`benchmarks/host_gpu`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_runs import arguments

ROOT = Path(__file__).parents[3]
ON_HOST_GPU = [sys.executable, str(ROOT / "benchmarks/host_gpu"), sys.executable, "-W", "ignore"]
SHORT = ["train.duration=2 steps", "evaluate.every=2 steps", "save.every=2 steps", "precision=autocast"]
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has a CUDA of its own"),
]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ON_HOST_GPU, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((f"ZeRO {stage}", [f"zero.stage={stage}"]) for stage in range(4)),
        ("overlap", ["zero.stage=2", "zero.overlap_communication=true", "launch.deterministic=true"]),
        ("bf16 weights", ["precision=bf16"]),
    ],
)
def test_two_ranks_train_on_the_device_to_the_end(place: Path, name: str, words: list[str]) -> None:
    done = run("-m", "coatnet.cli", "pretrain", *arguments(place, f"gpu {name}", *SHORT, *words))
    assert done.returncode == 0, done.stderr[-3000:]
    about = json.loads((place / f"gpu {name}" / "environment.json").read_text())
    assert about["device"] == "cuda" and about["world_size"] == 2
    assert (place / f"gpu {name}" / "done").exists()


def test_a_tensor_of_the_cpu_beside_the_devices_is_refused_as_on_a_gpu() -> None:
    done = run("-c", "import torch; torch.cat([torch.ones(3, device='cuda'), torch.ones(3)])")
    assert done.returncode == 1 and "beside the device's tensors" in done.stderr
