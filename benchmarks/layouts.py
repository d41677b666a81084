"""The paper's layout experiment in miniature: five layouts of one size, one budget, one small real corpus.

The layouts take turns, an epoch each, so that a run that is cut short has still given all of them the same.
Writes curves (PNG, TensorBoard) and prints what was seen beside what the paper says.

Example: python benchmarks/layouts.py --corpus ../shared/data/cifar10.tar --epochs 6 --out runs/layouts
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.cost import model_cost
from coatnet.model.network import build_model
from coatnet.model.norm import commit_statistics, defer_statistics
from coatnet.training.losses import make_loss
from coatnet.training.optimizer import parameter_groups
from coatnet.training.schedule import LearningRate

SOURCE_PIXELS, PIXELS, BATCH, SHIFT = 32, 64, 32, 4
PEAK, MINIMUM, WEIGHT_DECAY, SMOOTHING, WARMUP_SHARE = 2e-3, 1e-5, 0.05, 0.1, 0.1
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_WIDTHS = [8, 16, 32, 64, 96]
# About 0.3 M parameters and 5 M multiply-adds at 64 px each; the depths were chosen for that alone.
MINIATURES: dict[str, dict[str, Any]] = {
    "ViT-REL": {"name": "vit_rel", "depths": [1, 5], "widths": [64, 64]},
    "C-C-C-C": {"layout": "C-C-C-C", "depths": [1, 1, 2, 4, 1], "widths": _WIDTHS},
    "C-C-C-T": {"layout": "C-C-C-T", "depths": [1, 1, 3, 3, 1], "widths": _WIDTHS},
    "C-C-T-T": {"layout": "C-C-T-T", "depths": [1, 1, 2, 3, 1], "widths": _WIDTHS},
    "C-T-T-T": {"layout": "C-T-T-T", "depths": [1, 1, 1, 3, 1], "widths": _WIDTHS},
}


@dataclass
class Corpus:
    """Decoded images. Shape: images uint8 (n, 3, 32, 32), labels int64 (n,)."""

    images: Tensor
    labels: Tensor


@dataclass
class Run:
    """One layout's training and what was measured after each epoch."""

    layout: str
    config: ModelConfig
    epochs: int
    epoch_images: int
    seed: int
    train_accuracy: list[float] = field(default_factory=list)
    evaluation_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.model = build_model(self.config, norm=NormConfig(group_images=BATCH), seed=self.seed)
        defer_statistics(self.model)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, WEIGHT_DECAY), lr=PEAK)
        self.loss = make_loss("softmax", SMOOTHING)

    def train_epoch(self, corpus: Corpus, epoch: int) -> None:
        """Train on `epoch_images` images; their order and crops are the same for all layouts."""
        began = time.process_time()
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        count = min(self.epoch_images, len(corpus.labels)) // BATCH * BATCH
        total = self.epochs * count
        rate = LearningRate(
            peak=PEAK,
            minimum=MINIMUM,
            warmup_samples=int(total * WARMUP_SHARE),
            total_samples=total,
            shape="cosine",
        )
        self.model.train()
        correct = 0
        order = torch.randperm(len(corpus.labels), generator=generator)[:count]
        for step, indices in enumerate(order.split(BATCH)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate(epoch * count + step * BATCH)
            labels = corpus.labels[indices]
            logits = self.model(prepare(augment(corpus.images[indices], generator)))
            self.optimizer.zero_grad()
            self.loss(logits, labels).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            # Told the step, statistics forget their start soon: with momentum 0.01 alone evaluation after the
            # first 78 steps is at chance for every layout that has batch norm in its blocks.
            commit_statistics(self.model, step=epoch * (count // BATCH) + step + 1)
            correct += int((logits.argmax(-1) == labels).sum())
        self.train_accuracy.append(correct / count)
        self.seconds += time.process_time() - began

    @torch.no_grad()
    def evaluate(self, corpus: Corpus) -> None:
        """Count top-1 on every image of the evaluation split."""
        self.model.eval()
        correct = sum(
            int((self.model(prepare(images)).argmax(-1) == labels).sum())
            for images, labels in zip(corpus.images.split(256), corpus.labels.split(256), strict=True)
        )
        self.evaluation_accuracy.append(correct / len(corpus.labels))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the images and shift each batch by up to four pixels."""
    flips = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = F.pad(images, (SHIFT,) * 4)
    return padded[:, :, top : top + SOURCE_PIXELS, left : left + SOURCE_PIXELS]


def prepare(images: Tensor) -> Tensor:
    """Normalise and double the side: at 32 px the last stage would have one position."""
    shape = (1, 3, 1, 1)
    images = (images.float() / 255 - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
    return F.interpolate(images, size=PIXELS, mode="bilinear", align_corners=False)


def read_corpus(path: Path) -> dict[str, Corpus]:
    """Decode SPLIT/CLASS/file of a tar of 32-pixel images."""
    found: dict[str, list[tuple[str, Tensor]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or Path(member.name).suffix not in (".jpg", ".jpeg"):
                continue
            file = tar.extractfile(member)
            assert file is not None
            pixels = Image.open(io.BytesIO(file.read())).convert("RGB").tobytes()
            image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
            found.setdefault(parts[-3], []).append(
                (parts[-2], image.view(SOURCE_PIXELS, SOURCE_PIXELS, 3).permute(2, 0, 1))
            )
    classes = sorted({label for samples in found.values() for label, _ in samples})
    return {
        split: Corpus(
            torch.stack([image for _, image in samples]),
            torch.tensor([classes.index(label) for label, _ in samples]),
        )
        for split, samples in found.items()
    }


def draw(runs: list[Run], path: Path) -> None:
    """Draw train and evaluation accuracy, as Figure 1 does for loss and accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, title in zip(axes, ("train", "evaluation"), strict=True):
        for run in runs:
            curve = [100 * value for value in getattr(run, f"{title}_accuracy")]
            axis.plot(range(1, len(curve) + 1), curve, marker="o", markersize=3, label=run.layout)
        axis.set(title=f"{title} accuracy", xlabel="epoch")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1, %")
    axes[1].legend()
    figure.savefig(path, dpi=110)


def result(run: Run) -> dict:
    """Return a layout's row."""
    cost = model_cost(run.config, PIXELS)
    return {
        "layout": run.layout,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "epochs": len(run.evaluation_accuracy),
        "train_accuracy": run.train_accuracy,
        "evaluation_accuracy": run.evaluation_accuracy,
        "cpu_seconds": round(run.seconds, 1),
    }


def main() -> None:
    """Train the five layouts side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, default=Path("../shared/data/cifar10.tar"))
    parser.add_argument("--out", type=Path, default=Path("runs/layouts"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--epoch-images", type=int, default=10_000, help="training images per epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    corpora = read_corpus(arguments.corpus)
    held_out = next(split for split in corpora if split != "train")
    runs = [
        Run(
            layout,
            ModelConfig(num_classes=10, image_size=PIXELS, head_size=16, initialization="fan_in", **changes),
            epochs=arguments.epochs,
            epoch_images=arguments.epoch_images,
            seed=arguments.seed,
        )
        for layout, changes in MINIATURES.items()
    ]  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    writers = {run.layout: SummaryWriter(str(arguments.out / "tensorboard" / run.layout)) for run in runs}
    for epoch in range(arguments.epochs):
        for run in runs:
            run.train_epoch(corpora["train"], epoch)
            run.evaluate(corpora[held_out])
            for curve in ("train_accuracy", "evaluation_accuracy"):
                writers[run.layout].add_scalar(curve, getattr(run, curve)[-1], epoch + 1)
        rows = [result(run) for run in runs]
        (arguments.out / "layouts.json").write_text(json.dumps(rows, indent=2))
        draw(runs, arguments.out / "layouts.png")
        if not arguments.json:
            latest = "  ".join(f"{run.layout} {100 * run.evaluation_accuracy[-1]:.1f}" for run in runs)
            print(f"epoch {epoch + 1}/{arguments.epochs}, evaluation top-1 in %: {latest}", flush=True)
    for writer in writers.values():
        writer.close()
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
