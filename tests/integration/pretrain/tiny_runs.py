"""What the tests of whole runs share: a tiny config over sixty images, and how two ends are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bits import assert_same_tensors, newest
from PIL import Image

from coatnet.checkpoint.reader import Checkpoint
from coatnet.runtime.run_directory import RunDirectory, read_lines

STEPS = 16
CONFIG = f"""
seed: 3
model: {{depths: [1, 1, 1, 1, 1], widths: [8, 16, 16, 32, 32], stochastic_depth: 0.1}}
norm: {{group_images: 4}}
augment: {{image_size: 32, mixup: 0.2}}
data: {{threads: 1}}
optimizer: {{learning_rate: 0.002}}
schedule: {{warmup: 4 steps}}
ema: 0.9
train: {{duration: {STEPS} steps, global_batch: 24, micro_batch: 4}}
evaluate: {{every: {STEPS} steps}}
save: {{every: 4 steps}}
launch: {{ranks: 2}}
"""


def prepare(folder: Path) -> None:
    """Write images in three classes and the config."""
    generator = np.random.default_rng(0)
    for number in range(60):
        label = folder / "images" / f"class{number % 3}"
        label.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 96, (40, 40, 3)) + 50 * (number % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(label / f"{number:03d}.jpg")
    (folder / "config.yaml").write_text(CONFIG)


def arguments(place: Path, run: str, *more: str) -> list[str]:
    """Return what stands behind `coatnet pretrain` for a run of this name."""
    images = place / "images"
    data = [f"data.train=[{{path: {images}}}]", f"data.evaluate={images}"]
    return [str(place / "config.yaml"), *data, f"run.directory={place / run}", *more]


def last(run: Path) -> Checkpoint:
    """Return the newest whole checkpoint."""
    return newest(run / "checkpoints")


def assert_bit_equal(one: Checkpoint, other: Checkpoint) -> None:
    """Compare every tensor and the progress of two checkpoints."""
    assert_same_tensors(one, other)
    assert one.facts["progress"] == other.facts["progress"]


def kinds(run: Path) -> list[str]:
    """Return the kinds of a run's events, in order."""
    return [event["kind"] for event in RunDirectory(run).read_events()]


def evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """Return what each evaluation of a run found, in order."""
    rows = [row for row in read_lines(run.metrics) if "evaluate/top1" in row]
    return [{name: row[name] for name in row if name[:8] in ("samples_", "evaluate")} for row in rows]
