"""Does pretraining transfer, does resolution help, which layout transfers better? caltech101 → clothing10.

Pretrains two layouts of one size on 99 classes of photographs (caltech101) at 64 px, fine-tunes both on ten
kinds of clothes at two higher resolutions, and trains the first from scratch with the same budget, three
seeds each, all by the commands that a user would type. What is finished is not done again: stop it and start
it again as you like.

    python benchmarks/transfer.py --data DIRECTORY --runs runs/transfer --jobs 2

DIRECTORY holds caltech101.tar (train/CLASS/*.jpg, val/CLASS/*.jpg) and clothing10.tar (train, test). The
figures go to RUNS/transfer.json and transfer.md, the curves to transfer.png; a run of it is shown in
benchmarks/transfer.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coatnet.runtime.environment import code_commit

PRETRAIN_PX, SIZES, SEEDS = 64, (96, 128), (0, 1, 2)
# One size within 3 %: 0.72 M parameters and 13.0 M multiply-adds at 64 px, and 0.70 M and 12.6 M.
DEPTHS = {"C-C-T-T": [1, 1, 2, 3, 1], "C-T-T-T": [1, 1, 1, 3, 1]}
SCRATCH = "C-C-T-T"
SHARED = (
    "norm.group_images=32",
    "data.threads=1",
    "augment.evaluate_resize=whole",
    "augment.crop_area=[0.25,1.0]",
    "launch.ranks=1",
    "schedule.shape=cosine",
    "train.micro_batch=32",
)
PRETRAIN = (
    f"augment.image_size={PRETRAIN_PX}",
    "augment.mixup=0.2",
    "optimizer.learning_rate=2e-3",
    "optimizer.weight_decay=0.05",
    "model.stochastic_depth=0.1",
    "schedule.warmup=4 epochs",
    "train.global_batch=64",
    "evaluate.every=4 epochs",
    "save.every=2 minutes",
)
# The same for both ways of starting but for the rate, the best of 3e-4, 1e-3, 3e-3 and of 1e-3, 2e-3, 5e-3 on
# seed 0 at the lower resolution (docs/log.md).
FINETUNE = (
    "schedule.warmup=1 epochs",
    "optimizer.weight_decay=0.01",
    "train.global_batch=32",
    "train.patience=0",
    "ema=0.95",
    "evaluate.every=1 epochs",
    "save.every=100 epochs",
)
RATES = {"finetuned": 3e-3, "scratch": 1e-3}


@dataclass(frozen=True)
class Trial:
    """One fine-tuning, or training from scratch. `top1` is of the test set, after the last epoch."""

    way: str
    layout: str
    px: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.way}-{self.layout}-{self.px}-seed{self.seed}"

    @property
    def group(self) -> tuple[str, str, int]:
        return self.way, self.layout, self.px


def main() -> None:
    arguments = parse()
    runs: Path = arguments.runs
    runs.mkdir(parents=True, exist_ok=True)
    data = {
        name: unpack(arguments.data / f"{name}.tar", runs / name) for name in ("caltech101", "clothing10")
    }
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda layout: pretrain(runs, data, layout, epochs=arguments.pretrain_epochs), DEPTHS))
        list(pool.map(lambda trial: finetune(runs, data, trial, epochs=arguments.epochs), trials()))
    write(runs, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--pretrain-epochs", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="how many trainings at once, a thread each")
    return parser.parse_args()


def trials() -> Iterator[Trial]:
    for seed in SEEDS:
        for px in SIZES:
            yield from (Trial("finetuned", layout, px, seed) for layout in DEPTHS)
            yield Trial("scratch", SCRATCH, px, seed)


def unpack(archive: Path, folder: Path) -> Path:
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.tmp")
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # older Pythons lack it
            tar.extractall(temporary)
        temporary.rename(folder)
    return folder


def model(layout: str) -> str:
    depths = json.dumps(DEPTHS[layout], separators=(",", ":"))
    return (
        f"model={{name: coatnet_0, layout: {layout}, depths: {depths}, widths: [16,24,48,96,160], "
        "head_size: 16, initialization: fan_in, batch_norm_eps: 1e-5, layer_norm_eps: 1e-6}"
    )


def pretrain(runs: Path, data: dict[str, Path], layout: str, *, epochs: int) -> None:
    settings = [*PRETRAIN, f"evaluate.transfer={data['clothing10'] / 'train'}"]
    splits = data["caltech101"] / "train", data["caltech101"] / "val"
    run("pretrain", runs / f"pretrained-{layout}", layout, settings, splits=splits, epochs=epochs)


def finetune(runs: Path, data: dict[str, Path], trial: Trial, *, epochs: int) -> None:
    settings = [
        *FINETUNE,
        f"init={runs / f'pretrained-{trial.layout}' if trial.way == 'finetuned' else 'null'}",
        f"seed={trial.seed}",
        f"augment.image_size={trial.px}",
        f"optimizer.learning_rate={RATES[trial.way]}",
    ]
    splits = data["clothing10"] / "train", data["clothing10"] / "test"
    run("finetune", runs / trial.name, trial.layout, settings, splits=splits, epochs=epochs)


def run(
    command: str, directory: Path, layout: str, settings: list[str], *, splits: tuple[Path, Path], epochs: int
) -> None:
    if (directory / "done").exists():
        return
    config = directory.with_name(f"{directory.name}.yaml")
    config.write_text("{}\n")
    words = [sys.executable, "-m", "coatnet.cli", command, str(config), model(layout), *SHARED, *settings]
    words += [f"train.duration={epochs} epochs", f"run.directory={directory}"]
    words += [f"data.train=[{{path: {splits[0]}}}]", f"data.evaluate={splits[1]}"]
    print(f"$ coatnet {' '.join(words[3:])}", flush=True)
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if not (directory / "done").exists():
        raise SystemExit(f"{directory}: stopped before its end; the same command goes on")


def read_run(directory: Path) -> dict[str, Any]:
    """Read what a finished run reports, and top-1 after each evaluation as [samples seen, top-1]."""
    summary = json.loads((directory / "summary.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    # Of a killed run some are there twice.
    curve = {row["samples_seen"]: row["evaluate/top1"] for row in rows if "evaluate/top1" in row}
    return {**{key: summary[key] for key in ("top1", "top5", "samples")}, "curve": sorted(curve.items())}


def write(runs: Path, arguments: argparse.Namespace) -> None:
    record = {
        "commit": code_commit(),
        "pretrain_epochs": arguments.pretrain_epochs,
        "epochs": arguments.epochs,
        "pretrained": {layout: read_run(runs / f"pretrained-{layout}") for layout in DEPTHS},
        "runs": [{**asdict(trial), **read_run(runs / trial.name)} for trial in trials()],
    }
    (runs / "transfer.json").write_text(json.dumps(record, indent=1) + "\n")
    groups: dict[tuple[str, str, int], list[float]] = {}
    for trial, one in zip(trials(), record["runs"], strict=True):
        groups.setdefault(trial.group, []).append(one["top1"])
    table = "".join(
        f"| {way} | {layout} | {px} | {statistics.fmean(top1):.1%} ± {statistics.stdev(top1):.1%} | "
        f"{', '.join(f'{one:.1%}' for one in top1)} |\n"
        for (way, layout, px), top1 in sorted(groups.items(), key=lambda item: (item[0][2], item[0]))
    )
    header = "| way | layout | px | top-1, mean ± deviation | seeds |\n|---|---|---|---|---|\n"
    (runs / "transfer.md").write_text(header + table)
    print(header + table)
    plot(record, runs / "transfer.png")


def plot(record: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    pretraining, *others = figure.subplots(1, 1 + len(SIZES))
    colours = {("finetuned", "C-C-T-T"): "C1", ("finetuned", "C-T-T-T"): "C2", ("scratch", SCRATCH): "C0"}
    for layout in DEPTHS:
        seen, top1 = zip(*record["pretrained"][layout]["curve"], strict=True)
        pretraining.plot(seen, top1, color=colours["finetuned", layout], label=layout)
    pretraining.set_title(f"pretraining on caltech101, {PRETRAIN_PX} px")
    for axes, px in zip(others, SIZES, strict=True):
        for (way, layout), colour in colours.items():
            key = (way, layout, px)
            chosen = [one for one in record["runs"] if (one["way"], one["layout"], one["px"]) == key]
            for number, one in enumerate(chosen):
                seen, top1 = zip(*one["curve"], strict=True)
                axes.plot(seen, top1, color=colour, label=None if number else f"{way}, {layout}")
        axes.set_title(f"clothing10, {px} px")
        axes.sharey(others[0])
    for axes in (pretraining, *others):
        axes.set_xlabel("images seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend()
    pretraining.set_ylabel("top-1 on the held-out set")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
