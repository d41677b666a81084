"""Real pretraining jobs for the fake cluster: a tiny CoAtNet on a tiny corpus, and its final weights."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.site import PreflightConfig, SiteConfig
from cluster.submission import Request, prepare, submit

from fake_cluster import FakeCluster
from runs import SITE, Run

STEPS, BATCH, CLASSES, PER_CLASS = 60, 8, 4, 60

CONFIG = """\
seed: 3
model: {{name: coatnet_0, depths: [1, 1, 1, 1, 1], widths: [8, 16, 16, 32, 32], stochastic_depth: 0.1}}
norm: {{group_images: 2}}
data: {{train: [{{path: {shards}}}], threads: 1}}
augment: {{image_size: 32, crop_area: [0.5, 1.0]}}
schedule: {{warmup: 5 steps}}
optimizer: {{learning_rate: 0.002}}
train: {{duration: {steps} steps, global_batch: {batch}, micro_batch: 2}}
zero: {{stage: 1}}
save: {{every: {every}, last: 50}}
evaluate: {{every: 1000 epochs}}
"""


def make_corpus(folder: Path) -> Path:
    """Write noisy images in four colours and pack them into shards."""
    from data_pipeline.sharding.sharder import shard_corpus

    make_photos(folder / "images", seed=0, per_class=PER_CLASS)
    shard_corpus(folder / "images", folder / "shards", quiet=True)
    return folder / "shards"


def make_photos(folder: Path, *, seed: int, per_class: int) -> None:
    """Write a folder of noisy images for each of the classes."""
    generator = np.random.default_rng(seed)
    for label in range(CLASSES):
        directory = folder / f"class{label}"
        directory.mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., label % 3] += np.uint8(40 * (label + 1) // 2)
            Image.fromarray(pixels).save(directory / f"{number}.jpg")


def train(
    cluster: FakeCluster, directory: Path, shards: Path, *, every: str = "15 steps", steps: int = STEPS,
    overrides: tuple[str, ...] = (), release: bool = False, pace: float | None = 0.1,
    until_told: bool = False, flips_at: int = 0, **site: Any,
) -> Run:  # fmt: skip
    """Submit a training run as a user would.

    Args:
        pace: least seconds of a step, in a preloaded process; None starts the installed command itself.
        until_told: the first life does not end before it is told to, however late that comes.
        flips_at: behind this step of the first life a bit flips in a weight of the last rank.
    """
    os.environ["SLURM_CONF"] = cluster.environment["SLURM_CONF"]
    site.setdefault("preflight", PreflightConfig(enabled=False))
    directory.parent.mkdir(parents=True, exist_ok=True)
    config = directory.with_suffix(".yaml")
    config.write_text(CONFIG.format(shards=shards, steps=steps, batch=BATCH, every=every))
    chosen = replace(SiteConfig(**SITE), **site)
    request = Request("pretrain", str(config), overrides, chosen, directory=directory)
    run = Run(cluster, directory, steps)
    prepared = prepare(request)
    if pace is not None:
        program = cluster.preloaded.program(
            directory.with_suffix(".program"), pace=pace, until_told=until_told, flips_at=flips_at
        )
        prepared.job.program = str(program)
    run.job_id = submit(prepared, release=release)
    return run


def samples_seen(run: Run) -> int:
    """Return how far the run is, by its metrics."""
    return samples_seen_in(run.directory)


def samples_seen_in(directory: Path) -> int:
    """Return how far a run directory says that its run is."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line).get("samples_seen", 0) for line in lines), default=0)


def final_digest(run: Run) -> str:
    """Return a digest of the newest checkpoint's tensors, whole and in the order of their names."""
    from coatnet.checkpoint.store import CheckpointStore
    from coatnet.runtime.ranks import Ranks

    checkpoint = CheckpointStore(run.directory / "checkpoints", ranks=Ranks()).newest()
    assert checkpoint is not None
    digest = hashlib.sha256(str(checkpoint.samples_seen).encode())
    for kind in ("weight", "exp_avg", "exp_avg_sq", "buffer"):
        for name in sorted(checkpoint.names(kind)):
            digest.update(name.encode() + checkpoint.tensor(kind, name).numpy().tobytes())
    return digest.hexdigest()
