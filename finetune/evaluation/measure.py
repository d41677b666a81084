"""Run a model over an evaluation set and record what it says about each sample, once. Knows no figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from coatnet.config import UserError
from coatnet.runtime.progress import progress
from coatnet.runtime.ranks import Ranks
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import BadSample
from data_pipeline.device import DeviceTransform
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.record import SampleSource
from finetune.evaluation.predictions import TOP, Predictions


@dataclass(frozen=True)
class Measurement:
    """What was predicted, by all ranks together.

    Attributes:
        bad: samples that could not be read, which no figure counts.
        model_seconds: time in the model, of the slowest rank.
    """

    predictions: Predictions
    bad: list[dict[str, Any]]
    seconds: float
    model_seconds: float


@torch.inference_mode()
def measure(
    model: nn.Module,
    corpus: SampleSource,
    augment: AugmentConfig,
    *,
    batch: int,
    ranks: Ranks,
    columns: list[int] | None = None,
    precision: str = "fp32",
    threads: int = 2,
    decoder: str = "auto",
    label: str = "evaluate",
    show_progress: bool = True,
    breathe: Callable[[], None] = lambda: None,
) -> Measurement:
    """Evaluate in inference mode; every rank takes its share and every rank gets the whole.

    `columns` chooses and orders the model's outputs by the corpus's classes; None takes them as they are.
    `breathe` is called with every batch.

    Raises:
        UserError: no image can be read.
    """
    model.eval()
    loader = EvaluateLoader(
        corpus,
        augment,
        batch=batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=threads,
        decoder=decoder,
    )
    transform = DeviceTransform(augment, training=False)
    chosen = None if columns is None else torch.tensor(columns, device=ranks.device)
    parts: list[dict[str, list[Any]]] = []
    bad: list[BadSample] = []
    began, in_model = time.monotonic(), 0.0
    shown = show_progress and ranks.is_main
    with progress(loader.samples, label, "images", enabled=shown) as bar:
        for one in loader:
            breathe()
            bad += one.bad
            if not len(one):
                continue
            entered = time.monotonic()
            images, _ = transform(
                one.images.to(ranks.device, non_blocking=True),
                one.labels,
                one.keys,
                loader.num_classes,
                batch,
            )
            with torch.autocast(ranks.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = model(images)
            logits = logits if chosen is None else logits[:, chosen]
            parts.append(_record(logits.float().cpu(), labels=one.labels, index=one.positions))
            in_model += time.monotonic() - entered
            bar.advance(len(one) + len(one.bad))
    gathered = ranks.gather(
        {"rows": parts, "bad": [sample.to_dict() for sample in bad], "model_seconds": in_model}
    )
    unread = [sample for one in gathered for sample in one["bad"]]
    if len(unread) == corpus.samples:
        first = f"; the first: {unread[0]['reason']}" if unread else ""
        raise UserError(f"none of the {len(unread)} images to evaluate can be read{first}")
    return Measurement(
        predictions=Predictions.join([part for one in gathered for part in one["rows"]]),
        bad=unread,
        seconds=time.monotonic() - began,
        model_seconds=max(one["model_seconds"] for one in gathered),
    )


def top_classes(logits: Tensor, *, count: int) -> Tensor:
    """Return the best classes, best first; equal logits are ordered by the class's number.

    Shape: (n, K) → (n, min(count, K)).
    """
    return torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :count]


def _record(logits: Tensor, *, labels: Tensor, index: Tensor) -> dict[str, list[Any]]:
    finite = logits.isfinite().all(dim=1)
    safe = torch.where(finite[:, None], logits, 0.0).double()
    top = top_classes(safe, count=TOP)
    confidence = safe.softmax(dim=1).gather(1, top[:, :1])[:, 0]
    loss = functional.cross_entropy(safe, labels, reduction="none")
    return {
        "index": index.tolist(),
        "label": labels.tolist(),
        "top": torch.where(finite[:, None], top, -1).tolist(),
        "confidence": torch.where(finite, confidence, 0.0).tolist(),
        "loss": torch.where(finite, loss, float("inf")).tolist(),
    }
