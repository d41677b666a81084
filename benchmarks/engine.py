"""What the engine costs: against a bare PyTorch loop, per save, per resume, and in memory per ZeRO stage.

    python benchmarks/engine.py --model coatnet_0 --image-size 96 --batch 8 --rounds 6 --json

Rounds of bare and engine steps alternate in one process, so that other load on the machine hits both alike;
the ratio is that of the medians. Expected: overhead ≤ 1.05, save stall ≤ 1 % of a 60-second interval.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from coatnet.checkpoint.store import CheckpointStore
from coatnet.model import ModelConfig, NormConfig, build_model, commit_statistics, defer_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.losses import make_loss
from coatnet.training.parameters import parameter_groups
from coatnet.training.sections import OptimizerConfig, ZeroConfig
from pretrain.engine.engine import Engine

RATE, CLIP = 1e-3, 1.0
_INTERVAL_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="coatnet_0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    one_rank_environment()
    ranks = Ranks.start()
    model = ModelConfig(options.model, num_classes=1000, image_size=options.image_size)
    engine = make_engine(model, ranks=ranks, stage=options.stage, batch=options.batch)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size)
    batch = (images, torch.arange(options.batch) % 1000)
    result = {
        "parameters": sum(parameter.numel() for parameter in engine.module.parameters()),
        **overhead(engine, bare_step(model, batch=options.batch), batch, rounds=options.rounds),
        **saving(engine),
        **{
            f"bytes_per_parameter_stage_{stage}_8_ranks": memory_formula(stage, world_size=8)
            for stage in (0, 1, 2, 3)
        },
    }
    ranks.stop()
    print(json.dumps(result) if options.json else "\n".join(f"{key:36} {result[key]}" for key in result))
    return 0


def one_rank_environment() -> None:
    """Say that this process is the only rank."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getpid() % 10000))


def make_engine(model: ModelConfig, *, ranks: Ranks, stage: int, batch: int) -> Engine:
    """Return an engine as a run has it."""
    network = build_model(model, norm=NormConfig(group_images=batch), seed=0)
    defer_statistics(network)
    optimizer = OptimizerConfig(learning_rate=RATE, clip=CLIP)
    return Engine(network, ranks=ranks, zero=ZeroConfig(stage=stage), optimizer=optimizer)


def bare_step(model: ModelConfig, *, batch: int) -> Callable[[Any], None]:
    """Return the step that one would write by hand: forward, backward, clip, AdamW."""
    network = build_model(model, norm=NormConfig(group_images=batch), seed=0)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05), lr=RATE)
    loss_of = make_loss("softmax", 0.1)

    def step(given: Any) -> None:
        optimizer.zero_grad()
        loss_of(network(given[0]), given[1]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()

    return step


def overhead(engine: Engine, bare: Callable[[Any], None], batch: Any, *, rounds: int) -> dict[str, float]:
    """Time alternating steps; the first of each kind is not counted."""
    loss_of = make_loss("softmax", 0.1)

    def engine_step(given: Any) -> None:
        engine.step([given], loss_of=lambda model, part: loss_of(model(part[0]), part[1]), lr=RATE)
        commit_statistics(engine.module, engine.ranks.all_reduce_sum, step=engine.applied_steps)

    seconds: dict[str, list[float]] = {"bare": [], "engine": []}
    for number in range(rounds + 1):
        for name, step in (("bare", bare), ("engine", engine_step)):
            began = time.process_time()
            step(batch)
            if number:
                seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "bare_step_cpu_seconds": round(medians["bare"], 4),
        "engine_step_cpu_seconds": round(medians["engine"], 4),
        "overhead_ratio": round(medians["engine"] / medians["bare"], 4),
    }


def saving(engine: Engine) -> dict[str, float]:
    """Time what the loop waits for in a save, the whole save, and a resume."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), ranks=engine.ranks)
        began = time.monotonic()
        store.save(step=1, samples_seen=1, fragments=engine.fragments(), facts={})
        stall = time.monotonic() - began
        store.wait()
        whole = time.monotonic() - began
        store.close()
        began = time.monotonic()
        checkpoint = CheckpointStore(Path(folder), ranks=engine.ranks).newest()
        assert checkpoint is not None
        engine.load(checkpoint, applied_steps=engine.applied_steps)
        resume = time.monotonic() - began
        size = checkpoint.bytes
    return {
        "checkpoint_bytes": size,
        "save_stall_seconds": round(stall, 4),
        "save_stall_share_of_a_minute": round(stall / _INTERVAL_SECONDS, 5),
        "save_seconds": round(whole, 3),
        "resume_seconds": round(resume, 3),
        "resume_seconds_per_gb": round(resume / (size / 1e9), 3),
    }


def memory_formula(stage: int, *, world_size: int) -> float:
    """Bytes per parameter and rank in fp32: weights 4, gradients 4, moments 8, and ZeRO's own master copy 4.

    Stage 0 has no separate master copy.
    """
    if stage == 0:
        return 16.0
    shard = 1 / world_size
    return {1: 8 + 12 * shard, 2: 4 + 16 * shard, 3: 20 * shard}[stage]


if __name__ == "__main__":
    sys.exit(main())
