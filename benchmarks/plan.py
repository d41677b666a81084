"""Predicted against measured on this machine: memory and step time of four model sizes.

    .venv/bin/python benchmarks/plan.py --rounds 3        # two cores, measured before and after each run
    .venv/bin/python benchmarks/plan.py --stage 1 3       # the same at two stages in turn
    .venv/bin/python benchmarks/plan.py --finetune        # two cores, each model fine-tuned from a checkpoint
    … --finetune --freeze S0 S1 S2                        # the same with parts that do not learn
    .venv/bin/python benchmarks/plan.py --hardware h100   # one GPU, by its profile
    … --hardware h200 --eager --precision fp32 --recorded benchmarks/results/plan_h200_fp32.json
                                                          # the plan of now beside what a GPU measured before

On cores time is a rank's own processor time per step, which other work lengthens less than the clock on the
wall. It lengthens it still (caches, memory, what the host gives), so the profile is measured right before and
after each run, as `coatnet plan --calibrate` does, and the two plans' mean is compared; `fixed` is cpu2.yaml.
On a GPU time is the median step of the run's own metrics, memory what the allocator held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from cluster.planning.calibration import calibrate
from cluster.planning.request import plan_of

COATNET = [sys.executable, "-m", "coatnet.cli"]
Compare = Callable[..., list[str]]
Measure = Callable[..., tuple[float, float]]
COMMON = """\
norm: {{group_images: {group_images}}}
data: {{train: [{{path: {shards}}}], threads: {threads}}}
augment: {{image_size: {image_size}}}
train: {{duration: {steps} steps, global_batch: {global_batch}, micro_batch: {micro_batch}}}
save: {{every: 100000 steps}}
evaluate: {{every: 1000 epochs}}
run: {{directory: {directory}}}
launch: {{ranks: {ranks}}}
"""
PRETRAIN = """\
model: {{name: {model}, depths: {depths}, widths: {widths}}}
schedule: {{warmup: 2 steps}}
precision: {precision}
compile: {compile}
zero: {{stage: {stage}}}
"""
# The model is left to the checkpoint, from which it is planned too.
FINETUNE = """\
init: {checkpoint}
freeze: {freeze}
"""


@dataclass(frozen=True)
class Case:
    """One model and batch."""

    name: str
    depths: list[int] | str
    widths: list[int] | str
    image_size: int
    micro_batch: int
    steps: int
    model: str = "coatnet_0"
    ranks: int = 2
    threads: int = 1
    group_images: int = 2
    precision: str = "fp32"
    compile: bool = False
    stage: int = 1
    freeze: str = "[]"

    @property
    def global_batch(self) -> int:
        """Images per step."""
        return self.ranks * self.micro_batch


CASES = (
    Case(
        "0.5 M, 32 px", [1, 1, 1, 2, 1], [16, 32, 48, 96, 128], 32, 32, 80, group_images=32
    ),  # the quickstart
    Case("2.4 M, 96 px", [1, 1, 2, 3, 1], [32, 48, 96, 192, 256], 96, 8, 14),
    Case("7.7 M, 96 px", [1, 2, 3, 5, 1], [48, 64, 128, 256, 512], 96, 8, 10),
    Case("24 M, 96 px", [2, 2, 3, 5, 2], [64, 96, 192, 384, 768], 96, 8, 8),
)


def on_a_gpu(model: str, batch: int) -> Case:
    """One member of the family as its recipe runs it, with all the batch on one GPU."""
    return Case(
        f"{model} b{batch}", "null", "null", 224, batch, 24, model=model, ranks=1, threads=12,
        group_images=batch, precision="autocast", compile=True,
    )  # fmt: skip


GPU_CASES = (on_a_gpu("coatnet_0", 128), on_a_gpu("coatnet_2", 64), on_a_gpu("coatnet_4", 64))

HEAD = """\
| model | MiB predicted | measured | error | s/step predicted | measured | error | fixed | load |
|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure every case and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hardware", help="a GPU's profile to compare with; default: cores, measured")
    parser.add_argument("--eager", action="store_true", help="on a GPU: without torch.compile")
    parser.add_argument("--precision", default="autocast", help="on a GPU")
    parser.add_argument("--recorded", type=Path, help="on a GPU: what was measured before; nothing is run")
    parser.add_argument("--stage", type=int, nargs="+", default=[1], help="ZeRO's; of several in turn")
    parser.add_argument("--only", help="the cases whose name begins so")
    parser.add_argument("--finetune", action="store_true", help="on cores: fine-tune instead")
    parser.add_argument("--freeze", nargs="+", default=[], help="with --finetune: parts that do not learn")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go through the cases")
    options = parser.parse_args()
    cases: tuple[Case, ...] = CASES
    command = "finetune" if options.finetune else "pretrain"
    if options.hardware is None:
        compare: Compare = compare_cores
    else:
        cases = tuple(
            replace(case, compile=not options.eager, precision=options.precision) for case in GPU_CASES
        )
        measured = measure_gpu if options.recorded is None else partial(recall, options.recorded)
        compare = partial(compare_gpu, hardware=options.hardware, measured=measured)
    cases = tuple(case for case in cases if case.name.startswith(options.only or ""))
    folder = Path(tempfile.mkdtemp(prefix="plan-"))
    try:
        shards = make_corpus(folder)
        print(HEAD, flush=True)
        for case, stage in product(cases * options.rounds, options.stage):
            case = replace(case, stage=stage, freeze=f"[{', '.join(options.freeze)}]")
            config, directory = write_config(case, folder, shards, command=command)
            cells = compare(case, config, directory, command=command)
            name = case.name if command == "finetune" else f"{case.name}, ZeRO-{stage}"
            row = [name, *cells, f"{os.getloadavg()[0]:.0f}"]
            print("| " + " | ".join(row) + " |", flush=True)
    finally:
        shutil.rmtree(folder)


def write_config(case: Case, folder: Path, shards: Path, *, command: str) -> tuple[Path, Path]:
    """Write the case's config and return it with the run directory, which is not there yet."""
    directory, config = folder / "run", folder / "config.yaml"
    shutil.rmtree(directory, ignore_errors=True)
    values = {**asdict(case), "global_batch": case.global_batch, "shards": shards, "directory": directory}
    if command == "finetune":
        values["checkpoint"] = write_checkpoint(case, folder / "checkpoint")
    own = FINETUNE if command == "finetune" else PRETRAIN
    config.write_text((own + COMMON).format(**values))
    return config, directory


def compare_cores(case: Case, config: Path, directory: Path, *, command: str) -> list[str]:
    """Run a case between two measurements of the machine."""
    folder = config.parent
    before, after = folder / "before.yaml", folder / "after.yaml"
    calibrate(before, ranks=case.ranks)
    memory, seconds = measure(command, config, directory, global_batch=case.global_batch)
    calibrate(after, ranks=case.ranks)
    plans = [
        plan_of(command, config, [f"hardware={name}", f"gpus_per_node={case.ranks}"])[0]
        for name in (before, after, "cpu2")
    ]
    busy = [plan.step.seconds + plan.loading for plan in plans]  # of a core; waiting is no work
    predicted = (busy[0] + busy[1]) / 2
    fixed = f"{busy[2] / seconds - 1:+.0%}"
    return [*cells(plans[0].measurable_bytes, memory, predicted, seconds), fixed]


def compare_gpu(
    case: Case, config: Path, directory: Path, *, command: str, hardware: str, measured: Measure
) -> list[str]:
    """Set a case beside the plan by a profile."""
    plan, _ = plan_of(command, config, [f"hardware={hardware}", f"gpus_per_node={case.ranks}"])
    memory, seconds = measured(case, config, directory)
    return [*cells(plan.measurable_bytes, memory, plan.step.seconds, seconds), "–"]


def cells(bytes_predicted: float, bytes_measured: float, predicted: float, measured: float) -> list[str]:
    """Set both predictions beside what was measured."""
    memory = [f"{bytes_predicted / 2**20:.0f}", f"{bytes_measured / 2**20:.0f}"]
    times = [f"{predicted:.3f}", f"{measured:.3f}", f"{predicted / measured - 1:+.0%}"]
    return [*memory, f"{bytes_predicted / bytes_measured - 1:+.0%}", *times]


def recall(recorded: Path, case: Case, config: Path, directory: Path) -> tuple[float, float]:
    """Return what a case's run took when it was measured."""
    run = json.loads(recorded.read_text())["runs"][case.name]
    return run["mib"] * 2**20, run["step_seconds"]


def measure_gpu(case: Case, config: Path, directory: Path) -> tuple[float, float]:
    """Return the allocator's peak in bytes and the median step of the second half, from the run's metrics."""
    subprocess.run([*COATNET, "pretrain", str(config)], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step_seconds"] for line in lines if "step_seconds" in line]
    print(lines[-2 if len(lines) > 1 else -1], file=sys.stderr)
    memory = max(line.get("memory_gib", 0.0) for line in lines) * 2**30
    return memory, statistics.median(steps[len(steps) // 2 :])


def write_checkpoint(case: Case, destination: Path) -> Path:
    """Export fresh weights of the case's model, made for smaller images, as a run would."""
    from coatnet.checkpoint.weights import Weights, export_safetensors
    from coatnet.model.config import ModelConfig
    from coatnet.model.network import build_model

    assert not isinstance(case.depths, str) and not isinstance(case.widths, str)
    config = ModelConfig(depths=case.depths, widths=case.widths, num_classes=5, image_size=64)
    return export_safetensors(Weights(config, dict(build_model(config, seed=0).state_dict())), destination)


def measure(command: str, config: Path, directory: Path, *, global_batch: int) -> tuple[float, float]:
    """Return a rank's peak memory in bytes, and its processor seconds per step after the second step."""
    process = subprocess.Popen(
        [*COATNET, command, str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak, points = 0.0, list[tuple[int, float]]()
    while process.poll() is None:
        ranks = children(process.pid)
        peak = max([peak, *(peak_bytes(pid) for pid in ranks)])
        seen = samples_seen(directory / "metrics.jsonl")
        if ranks and seen and (not points or seen > points[-1][0]):
            points.append((seen, sum(processor_seconds(pid) for pid in ranks) / len(ranks)))
        time.sleep(0.05)
    assert process.returncode == 0 and len(points) > 2, "the run failed or was too short"
    (first, began), (last, ended) = points[0], points[-1]
    return peak, (ended - began) / ((last - first) / global_batch)


def make_corpus(folder: Path) -> Path:
    """Write random photographs of two classes and pack them."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in range(2):
        (folder / "images" / str(label)).mkdir(parents=True)
        for number in range(200):
            pixels = generator.integers(0, 255, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / str(label) / f"{number}.jpg")
    subprocess.run([*COATNET, "shard", str(folder / "images"), str(folder / "shards")], check=True,
                   capture_output=True)  # fmt: skip
    return folder / "shards"


def children(pid: int) -> list[int]:
    """Return the processes that `pid` started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def peak_bytes(pid: int) -> float:
    """Return the largest resident size that a process had."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far, without the threads in which gloo sends and waits."""
    ticks = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(") ")
        except OSError:  # the thread has ended
            continue
        if "gloo" not in name:
            ticks += sum(int(field) for field in fields.split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def samples_seen(path: Path) -> int:
    """Return how far the run is."""
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line).get("samples_seen", 0) for line in lines if line.endswith("}")), default=0)


if __name__ == "__main__":
    main()
