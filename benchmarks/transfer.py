"""Does pretraining transfer, and what does resolution add? caltech101 → clothing10, against from scratch.

Pretrains one small model on 99 classes of photographs (caltech101) at 32 px, then fine-tunes it on ten kinds
of clothes at two higher resolutions, and trains the same model from scratch with the same budget, three seeds
each, all by the commands a user would type. What is finished is not done again.

    python benchmarks/transfer.py --data DIRECTORY --runs runs/transfer

DIRECTORY holds caltech101.tar and clothing10.tar (train/CLASS/*.jpg and val/CLASS/*.jpg in each). The figures
go to RUNS/transfer.json, the curves to RUNS/transfer.png; docs/finetuning.md shows a run of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

SIZES = (64, 96)
SEEDS = (0, 1, 2)
PRETRAIN_PX = 32
MODEL = (
    "{name: coatnet_0, depths: [1,1,1,2,1], widths: [8,12,32,64,128], "
    "batch_norm_eps: 1e-5, layer_norm_eps: 1e-6}"
)
SHARED = (
    f"model={MODEL}",
    "norm.group_images=32",
    "data.threads=2",
    "augment.evaluate_resize=whole",
    "augment.crop_area=[0.3,1.0]",
    "launch.ranks=1",
)
PRETRAIN = (
    f"augment.image_size={PRETRAIN_PX}",
    "optimizer.learning_rate=3e-3",
    "schedule.warmup=1 epochs",
    "loss.smoothing=0",
    "train.global_batch=32",
    "train.micro_batch=32",
    "zero.stage=0",
    "evaluate.every=5 epochs",
    "save.every=2 minutes",
)
# The same for both ways of starting; the rates were chosen for each way on seed 0 at the lower resolution.
FINETUNE = (
    "schedule.shape=cosine",
    "schedule.warmup=1 epochs",
    "optimizer.weight_decay=0.01",
    "train.global_batch=32",
    "train.micro_batch=32",
    "train.patience=0",
    "ema=0.95",
    "evaluate.every=1 epochs",
    "save.every=100 epochs",
)
RATES = {"finetuned": 1e-3, "scratch": 2e-3}


def main() -> None:
    arguments = parse()
    runs: Path = arguments.runs
    runs.mkdir(parents=True, exist_ok=True)
    folders = {
        name: unpack(arguments.data / f"{name}.tar", runs / name) for name in ("caltech101", "clothing10")
    }
    began = time.monotonic()
    pretrain(runs, folders["caltech101"], epochs=arguments.pretrain_epochs)
    results = []
    for px in SIZES:
        for way, init in (("finetuned", str(runs / "pretrained")), ("scratch", "null")):
            for seed in SEEDS:
                directory = runs / f"{way}-{px}-seed{seed}"
                finetune(
                    directory,
                    folders["clothing10"],
                    init=init,
                    px=px,
                    seed=seed,
                    way=way,
                    epochs=arguments.epochs,
                )
                results.append(read_run(directory, way=way, px=px, seed=seed))
    write(runs, results, seconds=time.monotonic() - began, arguments=arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=6)
    return parser.parse_args()


def unpack(archive: Path, folder: Path) -> Path:
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.tmp")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        temporary.rename(folder)
    return folder


def pretrain(runs: Path, data: Path, *, epochs: int) -> None:
    run(
        "pretrain",
        "PRETRAIN_CONFIG",
        *SHARED,
        *PRETRAIN,
        f"train.duration={epochs} epochs",
        f"data.train=[{{path: {data / 'train'}}}]",
        f"data.evaluate={data / 'val'}",
        f"run.directory={runs / 'pretrained'}",
        directory=runs / "pretrained",
    )


def finetune(directory: Path, data: Path, *, init: str, px: int, seed: int, way: str, epochs: int) -> None:
    run(
        "finetune",
        "FINETUNE_CONFIG",
        *SHARED,
        *FINETUNE,
        f"init={init}",
        f"seed={seed}",
        f"augment.image_size={px}",
        f"optimizer.learning_rate={RATES[way]}",
        f"train.duration={epochs} epochs",
        f"data.train=[{{path: {data / 'train'}}}]",
        f"data.evaluate={data / 'val'}",
        f"run.directory={directory}",
        directory=directory,
    )


def run(command: str, config: str, *settings: str, directory: Path) -> None:
    if (directory / "done").exists():
        return
    path = directory.parent / f"{config.lower()}.yaml"
    path.write_text("{}\n")
    words = [sys.executable, "-m", "coatnet.cli", command, str(path), *settings]
    print(f"$ coatnet {' '.join(words[3:])}", flush=True)
    subprocess.run(words, check=True)


def read_run(directory: Path, *, way: str, px: int, seed: int) -> dict[str, Any]:
    summary = json.loads((directory / "summary.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    curve = [[row["samples_seen"], row["evaluate/top1"]] for row in rows if "evaluate/top1" in row]
    keys = ("top1", "top5", "samples", "seconds")
    return {"way": way, "px": px, "seed": seed, **{key: summary[key] for key in keys}, "curve": curve}


def write(
    runs: Path, results: list[dict[str, Any]], *, seconds: float, arguments: argparse.Namespace
) -> None:
    pretrained = json.loads((runs / "pretrained" / "summary.json").read_text())
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    table = []
    for px in SIZES:
        for way in RATES:
            top1 = [one["top1"] for one in results if (one["way"], one["px"]) == (way, px)]
            row = {"way": way, "px": px, "mean": statistics.fmean(top1), "deviation": statistics.stdev(top1)}
            table.append(row)
            print(f"{way:10} {px:4} px  {row['mean']:.1%} ± {row['deviation']:.1%}")
    record = {
        "commit": commit,
        "pretrain_epochs": arguments.pretrain_epochs,
        "epochs": arguments.epochs,
        "seconds": round(seconds),
        "pretrained": pretrained,
        "table": table,
        "runs": results,
    }
    (runs / "transfer.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(results, runs / "transfer.png")


def plot(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, px in zip(figure.subplots(1, 2, sharey=True), SIZES, strict=True):
        for way, colour in (("finetuned", "tab:orange"), ("scratch", "tab:blue")):
            chosen = [one for one in results if (one["way"], one["px"]) == (way, px)]
            for number, one in enumerate(chosen):
                seen, top1 = zip(*one["curve"], strict=True)
                axes.plot(seen, top1, color=colour, marker=".", label=None if number else way)
        axes.set_title(f"{px} px")
        axes.set_xlabel("images seen")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("top-1 on clothing10's validation set")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
