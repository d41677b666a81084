"""The code that runs on a GPU alone, on a CUDA device whose memory is the host's (`benchmarks/host_gpu`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from on_host_gpu import NEEDS_HOST_GPU, on_host_gpu

from tiny_runs import arguments

SHORT = ["train.duration=2 steps", "evaluate.every=2 steps", "save.every=2 steps", "precision=autocast"]
pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900), *NEEDS_HOST_GPU]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((f"ZeRO {stage}", [f"zero.stage={stage}"]) for stage in range(4)),
        ("overlap", ["zero.stage=2", "zero.overlap_communication=true", "launch.deterministic=true"]),
        ("bf16 weights", ["precision=bf16"]),
    ],
)
def test_two_ranks_train_on_the_device_to_the_end(place: Path, name: str, words: list[str]) -> None:
    done = on_host_gpu("-m", "coatnet.cli", "pretrain", *arguments(place, f"gpu {name}", *SHORT, *words))
    assert done.returncode == 0, done.stderr[-3000:]
    about = json.loads((place / f"gpu {name}" / "environment.json").read_text())
    assert about["device"] == "cuda" and about["world_size"] == 2
    assert (place / f"gpu {name}" / "done").exists()


def test_two_ranks_trace_their_steps_and_memory_on_the_device(place: Path) -> None:
    words = [*SHORT, "profile.steps=2..2"]
    done = on_host_gpu("-m", "coatnet.cli", "pretrain", *arguments(place, "gpu traced", *words))
    assert done.returncode == 0, done.stderr[-3000:]
    written = {path.name for path in (place / "gpu traced" / "logs" / "profile").iterdir()}
    ends = ("-memory.bin", ".json")
    assert written == {f"steps-2-2-rank{rank}{end}" for rank in (0, 1) for end in ends}


def test_a_tensor_of_the_cpu_beside_the_devices_is_refused_as_on_a_gpu() -> None:
    done = on_host_gpu("-c", "import torch; torch.cat([torch.ones(3, device='cuda'), torch.ones(3)])")
    assert done.returncode == 1 and "beside the device's tensors" in done.stderr
