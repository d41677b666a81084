"""Fine-tuning through accelerate in torchrun's process group: NCCL on a GPU, gloo on a CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coatnet.checkpoint.weights import Weights, export_safetensors
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.run_directory import RunDirectory, read_lines

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
# DDP, and accelerate's DeepSpeed plug-in.
GPU = [pytest.param(name, marks=ON_GPU) for name in ("cuda", "cuda zero=1", "cuda zero=2")]
CPU = pytest.param("cpu")  # slow in bf16: a short run tells whether the words are right
SIZES = {
    "cuda": {"widths": [16, 32, 64, 96, 128], "px": 96, "steps": 18, "every": 3},
    "cpu": {"widths": [8, 8, 16, 32, 32], "px": 64, "steps": 9, "every": 3},
}
# Another grid than the checkpoint's, so that the tables of the relative bias are resized in the graph.
CONFIG = """
seed: 3
augment: {{image_size: {px}, mixup: 0.1}}
optimizer: {{learning_rate: 0.003, layer_decay: 0.9}}
schedule: {{warmup: 2 steps}}
stochastic_depth: 0.1
precision: bf16
ema: 0.9
train: {{duration: {steps} steps, global_batch: 32, micro_batch: 16}}
evaluate: {{every: {every} steps}}
save: {{every: {every} steps}}
launch: {{deterministic: true}}
"""


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A folder named after device and settings, with a config, a model to begin with and the images."""
    folder = tmp_path_factory.mktemp("finetune") / request.param
    folder.mkdir()
    sizes = SIZES[device_of(folder)]
    model = ModelConfig(depths=[1, 1, 1, 1, 1], widths=sizes["widths"], num_classes=7, image_size=32)
    export_safetensors(Weights(model, dict(build_model(model, seed=1).state_dict())), folder / "pretrained")
    (folder / "config.yaml").write_text(CONFIG.format(**sizes))
    (folder / "images").symlink_to(images)
    return folder


def device_of(place: Path) -> str:
    return place.name.split()[0]


def start(place: Path, run: str) -> subprocess.Popen[str]:
    """Start one rank under torchrun; CUDA is hidden from it where the device is to be a CPU."""
    images = place / "images"
    settings = [
        f"init={place / 'pretrained'}",
        f"data.train=[{{path: {images}}}]",
        f"data.evaluate={images}",
        f"run.directory={place / run}",
        *place.name.split()[1:],
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    words = [*torchrun, "-m", "coatnet.cli", "finetune", str(place / "config.yaml"), *settings]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device_of(place) == "cpu" else {}
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, **hidden},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    process = start(place, "undisturbed")
    _, said = process.communicate()
    assert process.returncode == 0, said[-3000:]
    return place / "undisturbed"


@pytest.mark.parametrize("place", [CPU, *GPU], indirect=True, scope="module")
def test_a_fine_tuning_run_learns_in_bf16_in_the_devices_own_process_group(
    undisturbed: Path, place: Path
) -> None:
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert environment["device"] == device_of(place) and environment["world_size"] == 1
    losses = [
        row["evaluate/loss"] for row in read_lines(undisturbed / "metrics.jsonl") if "evaluate/loss" in row
    ]
    assert losses[-1] < losses[0] and losses[-1] < math.log(3)  # what a new head knows of three classes


@pytest.mark.parametrize(
    "place", [pytest.param("cpu", marks=pytest.mark.campaign), *GPU], indirect=True, scope="module"
)
def test_a_killed_rank_leaves_no_trace_in_the_weights(
    undisturbed: Path, place: Path, assert_same_bits: Callable[[Path, Path], None]
) -> None:
    run = RunDirectory(place / "killed")
    process = start(place, "killed")
    while not any(run.checkpoints.glob("step-*")) and process.poll() is None:
        time.sleep(0.02)
    lease = max((run.path / "lease").iterdir())
    os.kill(json.loads(lease.read_text().splitlines()[0])["pid"], 9)
    process.communicate()
    assert process.returncode != 0 and run.marker("done") is None
    again = start(place, "killed")
    _, said = again.communicate()
    assert again.returncode == 0, said[-3000:]
    kinds = [event["kind"] for event in run.read_events()]
    assert kinds.count("start") == 1 and kinds.count("resume") == 1
    assert_same_bits(run.path, undisturbed)
