"""What the engine costs: against a bare PyTorch loop, per save, per resume, and in memory per ZeRO stage.

    python benchmarks/engine.py --image-size 224 --batch 16 --json
    python benchmarks/engine.py --memory --model coatnet_1 --ranks 2 --json

Steps of the engine and of a bare loop alternate, so that other load on the machine hits both alike, each in a
process of its own, since what one frees decides where the other's memory lies. Where a process's own memory
lies matters more than what is sought, so there are several pairs of processes, and each loop's median counts;
in CPU seconds, of a process the least, as neighbours only add. The bare loop has all that is cheap to have:
fused AdamW, foreach clipping, gradients set to None, and the huge pages that `Ranks.start` asks for.
Expected: overhead ≤ 1.05, save stall ≤ 1 % of a 60-second interval, verified reading ≤ 1 s per GB.

`--memory` starts ranks for one stage after the other and reads the high-water mark of their resident memory
above what the process had before the model: while it is built, and over two steps on a tiny image. Between
steps it adds up the tensors that are held.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cluster.planning.hardware import load_hardware
from cluster.planning.memory import Layout, predict_memory
from cluster.planning.workload import workload
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import build_model
from coatnet.model.norm import commit_statistics, defer_statistics
from coatnet.runtime.launch import free_port
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.rendezvous import local_variables
from coatnet.training.losses import make_loss
from coatnet.training.optimizer import parameter_groups
from coatnet.training.sections import OptimizerConfig, ZeroConfig
from pretrain.engine.engine import Engine
from pretrain.engine.sharding import sharder

RATE, CLIP = 1e-3, 1.0
_INTERVAL_SECONDS = 60.0
_TINY_IMAGE = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="coatnet_0")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.memory and "RANK" in os.environ:
        print(json.dumps(memory_of_rank(options)), flush=True)
        return 0
    result = memory_by_stage(options) if options.memory else time_of_steps(options)
    print(json.dumps(result) if options.json else "\n".join(f"{key:36} {result[key]}" for key in result))
    return 0


def time_of_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the loops in pairs of processes; then the engine's saves and resumes."""
    least: dict[str, list[float]] = {"bare": [], "engine": []}
    for _ in range(options.pairs):
        loops = {name: start_loop(name, options) for name in least}
        parameters, other = (loop.recv() for loop in loops.values())
        assert parameters == other
        times = [{name: ask(loop, "step") for name, loop in loops.items()} for _ in range(options.rounds + 1)]
        for name, found in least.items():
            found.append(min(one[name] for one in times[1:]))
        saving_costs = [ask(loop, "end") for loop in loops.values()][-1]
    return {"parameters": parameters, **overhead(least), **saving_costs}


def start_loop(name: str, options: argparse.Namespace) -> Connection:
    """Start a loop in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    loop, theirs = spawn.Pipe()
    spawn.Process(target=serve_steps, args=(theirs, name, options), daemon=True).start()
    theirs.close()
    return loop


def serve_steps(line: Connection, name: str, options: argparse.Namespace) -> None:
    """Build a loop, tell its number of parameters, and answer each step with its CPU seconds.

    The end is answered by what the engine's saves cost.
    """
    os.environ.update(local_variables(0, ranks=1, port=free_port()))
    ranks = Ranks.start()
    model = ModelConfig(options.model, num_classes=1000, image_size=options.image_size)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size)
    batch = (images, torch.arange(options.batch) % 1000)
    if name == "bare":
        network, step = bare_loop(model, batch=options.batch)
        end: Callable[[], dict[str, float]] = dict
    else:
        engine = make_engine(model, ranks=ranks, stage=options.stage, batch=options.batch)
        network, step, end = engine.module, partial(take_step, engine), partial(saving, engine)
    line.send(sum(parameter.numel() for parameter in network.parameters()))
    while line.recv() == "step":
        began = time.process_time()
        step(batch)
        line.send(time.process_time() - began)
    line.send(end())
    ranks.stop()


def ask(loop: Connection, what: str) -> Any:
    """Return a loop's answer."""
    loop.send(what)
    return loop.recv()


def overhead(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Compare the medians over the pairs, and tell each process's seconds."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}_step_cpu_seconds": round(median, 4) for name, median in medians.items()},
        **{f"{name}_by_process": [round(one, 2) for one in values] for name, values in seconds.items()},
        "overhead_ratio": round(medians["engine"] / medians["bare"], 4),
    }


def memory_by_stage(options: argparse.Namespace) -> dict[str, Any]:
    """Start `ranks` processes per stage and collect rank 0's bytes per parameter beside the formula's."""
    rows = {}
    for stage in (0, 1, 2, 3):
        port = free_port()
        command = [sys.executable, __file__, "--memory", "--model", options.model, "--stage", str(stage)]
        command += ["--precision", options.precision]
        group = [
            subprocess.Popen(
                command,
                env={**os.environ, **local_variables(rank, ranks=options.ranks, port=port)},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(options.ranks)
        ]
        output = group[0].communicate()[0]
        assert all(process.wait() == 0 for process in group)
        formula = memory_formula(stage, world_size=options.ranks, precision=options.precision)
        planned = memory_planned(options, stage=stage)
        rows[f"stage_{stage}"] = {
            "formula": formula,
            "planned": planned,
            **json.loads(output.splitlines()[-1]),
        }
    return rows


def memory_planned(options: argparse.Namespace, *, stage: int) -> float:
    """Return what `coatnet plan` counts for the model and its buckets, in bytes per parameter and rank."""
    works = workload(ModelConfig(options.model, num_classes=1000), image_size=_TINY_IMAGE)
    layout = Layout(options.ranks, stage, 2, precision=options.precision)
    hardware = load_hardware("cpu2")
    found = predict_memory(works, layout=layout, hardware=hardware, image_size=_TINY_IMAGE)
    size = found.weights + found.gradients + found.optimizer + found.buckets + found.reserve
    return round(size / sum(work.parameters for work in works), 2)


def memory_of_rank(options: argparse.Namespace) -> dict[str, float]:
    """Build an engine and take two steps; return what this took above the process before, per parameter."""
    ranks = Ranks.start()
    model = ModelConfig(options.model, num_classes=1000, image_size=_TINY_IMAGE)
    small = ModelConfig("coatnet_0", num_classes=8, image_size=_TINY_IMAGE, depths=[1] * 5, widths=[32] * 5)
    batch = (torch.randn(2, 3, _TINY_IMAGE, _TINY_IMAGE), torch.arange(2))
    take_step(make_engine(small, ranks=ranks, stage=options.stage, batch=2), batch)  # loads whatever is lazy
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    engine = make_engine(model, ranks=ranks, stage=options.stage, batch=2, precision=options.precision)
    built = resident_bytes("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        take_step(engine, batch)
    stepped, between = resident_bytes("VmHWM") - before, tensor_bytes()
    counted = sum(getattr(one, "ds_numel", one.numel()) for one in engine.module.parameters())
    ranks.barrier()
    ranks.stop()
    found = {"peak_of_build": built, "peak_of_step": stepped, "between_steps": between}
    return {name: round(size / counted, 2) for name, size in found.items()}


def resident_bytes(field: str) -> int:
    """Read a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def tensor_bytes() -> int:
    """Add up the storages of all tensors that this process holds."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def make_engine(
    model: ModelConfig, *, ranks: Ranks, stage: int, batch: int, precision: str = "fp32"
) -> Engine:
    """Return an engine as a run has it."""
    zero = ZeroConfig(stage=stage)
    placed = sharder(zero, ranks=ranks, precision=precision)
    network = build_model(model, norm=NormConfig(group_images=batch), seed=0, placed=placed)
    defer_statistics(network)
    optimizer = OptimizerConfig(learning_rate=RATE, clip=CLIP)
    return Engine(network, ranks=ranks, zero=zero, optimizer=optimizer, precision=precision)


def take_step(engine: Engine, batch: Any) -> None:
    """Take a step as the trainer does."""
    loss_of = make_loss("softmax", 0.1)
    engine.step([batch], loss_of=lambda model, part: loss_of(model(part[0]), part[1]), lr=RATE)
    commit_statistics(engine.module, engine.ranks.all_reduce_sum, step=engine.state.applied_steps)


def bare_loop(model: ModelConfig, *, batch: int) -> tuple[torch.nn.Module, Callable[[Any], None]]:
    """Return a model and the step that one would write by hand: forward, backward, clip, AdamW."""
    network = build_model(model, norm=NormConfig(group_images=batch), seed=0)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05), lr=RATE, fused=True)
    loss_of = make_loss("softmax", 0.1)

    def step(given: Any) -> None:
        optimizer.zero_grad()
        loss_of(network(given[0]), given[1]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()

    return network, step


def saving(engine: Engine) -> dict[str, float]:
    """Time what the loop waits for in a save, the whole save, a verified reading, and a resume."""
    stalls = []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder), ranks=engine.ranks)
        for step in (1, 2, 3):
            began = time.monotonic()
            store.save(step=step, samples_seen=step, fragments=engine.state.fragments(), facts={})
            stalls.append(time.monotonic() - began)
            store.wait()
        whole = time.monotonic() - began
        store.close()
        began = time.process_time()
        checkpoint = Checkpoint(store.path(3))
        checkpoint.verify()
        verify = time.process_time() - began
        began = time.monotonic()
        newest = CheckpointStore(Path(folder), ranks=engine.ranks).newest()
        assert newest is not None
        engine.state.load(newest, applied_steps=engine.state.applied_steps)
        resume = time.monotonic() - began
    stall = statistics.median(stalls)
    return {
        "checkpoint_bytes": checkpoint.bytes,
        "save_stall_seconds": round(stall, 4),
        "save_stall_share_of_a_minute": round(stall / _INTERVAL_SECONDS, 5),
        "save_seconds": round(whole, 3),
        "verify_cpu_seconds_per_gb": round(verify / (checkpoint.bytes / 1e9), 3),
        "resume_seconds": round(resume, 3),
    }


def memory_formula(stage: int, *, world_size: int, precision: str) -> float:
    """Bytes per parameter and rank: weights, gradients, two moments and, but for fp32 at stage 0, masters.

    With bf16 weights the gradients are summed in fp32.
    """
    weight = 2 if precision == "bf16" else 4
    state = 8 if stage == 0 and precision == "fp32" else 12
    held = {0: weight + 4 + state, 1: weight + 4, 2: weight, 3: 0}[stage]
    sharded = {0: 0, 1: state, 2: 4 + state, 3: weight + 4 + state}[stage]
    return held + sharded / world_size


if __name__ == "__main__":
    sys.exit(main())
