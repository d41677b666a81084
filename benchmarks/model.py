"""Time a training step beside timm's model of the same size: forward, backward, AdamW.

    python benchmarks/model.py                          coatnet_0 at 224 px on this machine
    python benchmarks/model.py --name coatnet_4 --batch 128 --json

Every variant of the peer has its chance (eager, compiled; contiguous, channels-last; fp32, bf16 where the
device has it); on a CPU each of its two compilations takes some ten minutes. Steps are interleaved, so that
a machine shared with others slows all alike; medians count. `ratio_vs_timm_compiled` is the peer's best
compiled time over our best. With `--clock cpu` and one thread it is the process's own CPU time, which others'
load does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from timm_peer import import_timm

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.training.utilisation import flops_per_image, peak_flops

_CLASSES = 1000
_WARM_UP = 2
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Variant:
    """One way to run one of the two models, and the seconds that its steps took."""

    who: str
    compiled: bool
    layout: str
    dtype: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def title(self) -> str:
        """How tables name it."""
        return f"{self.who} {'compiled' if self.compiled else 'eager'} {self.layout} {self.dtype}"


def main() -> None:
    """Measure, then print a table or JSON."""
    options = parse()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = [
        variant
        for variant in variants(device, modes=options.modes)
        if any(part in variant.title for part in options.only)
    ]
    steps = {}
    for variant in found:
        steps[variant.title] = make_step(variant, options, device)
        for _ in range(_WARM_UP):
            steps[variant.title]()
        print(f"ready: {variant.title}", file=sys.stderr, flush=True)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for _ in range(options.rounds):
        for variant in found:
            variant.seconds.append(measure(steps[variant.title], variant, clock=clock, device=device))
    show(found, options, device)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="coatnet_0", help="coatnet_0 … coatnet_5")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help='variants whose title has it: "timm compiled"'
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def variants(device: torch.device, *, modes: list[str]) -> list[Variant]:
    """List what is worth running: bf16 where the device computes in it, ours compiled where that gains."""
    has_bf16 = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found = []
    for dtype in ("fp32", "bf16") if has_bf16 else ("fp32",):
        for mode in modes:
            found += [Variant("timm", mode == "compiled", layout, dtype) for layout in ("NCHW", "NHWC")]
            if mode == "eager" or device.type == "cuda":
                found.append(Variant("coatnet", mode == "compiled", "NHWC", dtype))
    return found


def make_step(variant: Variant, options: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """Build the model and return what runs one training step."""
    memory_format = torch.channels_last if variant.layout == "NHWC" else torch.contiguous_format
    images = torch.randn(options.batch, 3, 224, 224, device=device).to(memory_format=memory_format)
    labels = torch.randint(0, _CLASSES, (options.batch,), device=device)
    model: Any
    if variant.who == "timm":
        model = (
            import_timm().create_model(f"{options.name}_224").to(device, memory_format=memory_format).train()
        )
        model = torch.compile(model, dynamic=False) if variant.compiled else model
    else:
        model = build_model(ModelConfig(name=options.name), device=device, seed=0).train()
        if variant.compiled:
            model.compile_blocks()
    return training_step(model, images, labels, dtype=_DTYPES[variant.dtype])


def training_step(model: Any, images: Tensor, labels: Tensor, *, dtype: torch.dtype) -> Callable[[], None]:
    """Return what runs one step: forward (under autocast unless fp32), backward, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with nullcontext() if dtype == torch.float32 else torch.autocast(images.device.type, dtype=dtype):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def measure(
    step: Callable[[], None], variant: Variant, *, clock: Callable[[], float], device: torch.device
) -> float:
    """Return the seconds of one step, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        variant.peak_bytes = max(variant.peak_bytes or 0, torch.cuda.max_memory_allocated())
    return clock() - start


def show(found: list[Variant], options: argparse.Namespace, device: torch.device) -> None:
    """Print medians, rates and ratios."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    median = {variant.title: statistics.median(variant.seconds) for variant in found}
    macs = {"coatnet": options.name, "timm": f"{options.name}_dconv"}
    rows = []
    for variant in found:
        rate = options.batch / median[variant.title]
        flops = flops_per_image(ModelConfig(name=macs[variant.who]), 224) * rate
        row = {key: value for key, value in asdict(variant).items() if key != "seconds"}
        peak = peak_flops(variant.dtype)
        mfu = None if peak is None else flops / peak
        rows.append({**row, "step_seconds": median[variant.title], "images_per_second": rate, "mfu": mfu})
    ours = best(found, median, who="coatnet")
    result = {
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "model": options.name,
        "batch": options.batch,
        "rounds": options.rounds,
        "ratio_vs_timm_compiled": ratio(best(found, median, who="timm", compiled=True), ours),
        "ratio_vs_timm_eager": ratio(best(found, median, who="timm", compiled=False), ours),
        "variants": rows,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{options.name}, batch {options.batch}, 224 px, {name}, {options.clock} time")
    print(f"{'variant':<34}{'step s':>9}{'images/s':>11}{'MFU':>8}{'peak GiB':>10}")
    for variant, row in zip(found, rows, strict=True):
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = "" if variant.peak_bytes is None else f"{variant.peak_bytes / 2**30:.2f}"
        print(
            f"{variant.title:<34}{row['step_seconds']:>9.3f}{row['images_per_second']:>11.2f}{mfu:>8}{memory:>10}"
        )
    for key in ("ratio_vs_timm_compiled", "ratio_vs_timm_eager"):
        print(f"{key}: {result[key] if result[key] is None else round(result[key], 3)}")


def best(
    found: list[Variant], median: dict[str, float], *, who: str, compiled: bool | None = None
) -> float | None:
    """Return the least median among the variants asked for, None where none was run."""
    chosen = [v for v in found if v.who == who and compiled in (None, v.compiled)]
    return min((median[variant.title] for variant in chosen), default=None)


def ratio(theirs: float | None, ours: float | None) -> float | None:
    """How many times quicker we are."""
    return None if theirs is None or ours is None else theirs / ours


def processor() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0]}, {torch.backends.cpu.get_cpu_capability()}" if named else platform.processor()


if __name__ == "__main__":
    main()
