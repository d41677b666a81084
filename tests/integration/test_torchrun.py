"""Without SLURM: torchrun on two machines and on one gives the bits of the local launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bits import assert_same_tensors, newest
from PIL import Image
from waiting import wait_until

from coatnet.runtime.launch import free_port
from coatnet.runtime.run_directory import RunDirectory, read_lines

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
CONFIG = """\
seed: 3
model: {{depths: [1, 1, 1, 1, 1], widths: [8, 16, 16, 32, 32], stochastic_depth: 0.1}}
norm: {{group_images: 2}}
augment: {{image_size: 32}}
data: {{train: [{{path: {images}}}], threads: 1}}
train: {{duration: 150 steps, global_batch: 8, micro_batch: 4}}
save: {{every: 1000 steps}}
evaluate: {{every: 1000 epochs}}
launch: {{ranks: 2}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(60):
        label = tmp_path / "images" / f"class{number % 3}"
        label.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(label / f"{number}.jpg")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(images=tmp_path / "images"))
    return path


def start(*command: str | Path) -> subprocess.Popen[bytes]:
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.Popen(
        [str(word) for word in command], env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    )


def torchrun(config: Path, run: Path, *, nodes: int, ranks: int, port: int) -> subprocess.Popen[bytes]:
    """Start what docs/slurm.md says, on one machine of `nodes`."""
    return start(
        BIN / "torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"localhost:{port}", "--no-python",
        "coatnet", "pretrain", config, f"run.directory={run}",
    )  # fmt: skip


def wait_for_metrics(run: RunDirectory, machines: list[subprocess.Popen[bytes]]) -> None:
    wait_until(
        lambda: run.metrics.exists() or any(one.poll() is not None for one in machines), what=str(run.metrics)
    )
    assert all(one.poll() is None for one in machines)


def assert_bit_equal(one: Path, other: Path) -> None:
    first, second = (newest(run / "checkpoints") for run in (one, other))
    assert first.samples_seen == second.samples_seen == 1200
    assert_same_tensors(first, second)


def test_torchrun_on_two_machines_saves_when_it_is_stopped_and_goes_on_on_one(
    config: Path, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    assert start(BIN / "coatnet", "pretrain", config, f"run.directory={local}").wait(timeout=400) == 0

    run, port = RunDirectory(tmp_path / "run"), free_port()
    machines = [torchrun(config, run.path, nodes=2, ranks=1, port=port) for _ in range(2)]
    wait_for_metrics(run, machines)
    for one in machines:
        one.send_signal(signal.SIGTERM)
    for one in machines:
        one.wait(timeout=120)
    assert run.marker("stopped") is not None and run.marker("done") is None
    assert torchrun(config, run.path, nodes=1, ranks=2, port=free_port()).wait(timeout=400) == 0
    assert run.marker("done") is not None
    assert [event["kind"] for event in read_lines(run.events) if event["kind"] in {"start", "resume"}] == [
        "start",
        "resume",
    ]
    assert_bit_equal(run.path, local)
