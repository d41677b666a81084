"""Run a model over an evaluation set and record what it says about each sample, once. Knows no figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.config import UserError
from coatnet.runtime.memory import available_memory
from coatnet.runtime.on_device import on_device
from coatnet.runtime.progress import progress
from coatnet.runtime.ranks import Ranks
from coatnet.training.losses import log_odds, make_loss, probabilities
from coatnet.training.way_out import WayOut
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import BadSample
from data_pipeline.device import normalise
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.record import SampleSource
from finetune.evaluation.predictions import TOP, MultiLabelPredictions, Predictions, join

AnyPredictions = Predictions | MultiLabelPredictions
# Of log odds: copies of an image tie, which the products of batches of different sizes part by a last bit.
_SCORE_DECIMALS = 3
_BYTES_PER_PAIR = 10  # of an image and a class: a score and a truth, twice while batches are joined


@dataclass(frozen=True)
class Measurement:
    """What was predicted, by all ranks together.

    Attributes:
        bad: samples that could not be read, which no figure counts.
        model_seconds: time in the model, of the slowest rank.
    """

    predictions: AnyPredictions
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
    loss: str | None = None,
    columns: list[int] | None = None,
    precision: str = "fp32",
    threads: int = 2,
    decoder: str = "auto",
    label: str | None = None,
    way_out: WayOut | None = None,
) -> Measurement:
    """Evaluate in inference mode; every rank takes its share and every rank gets the whole.

    Args:
        model, corpus, augment: what says what of which images, seen how.
        batch, ranks, precision, threads, decoder: how the work is done.
        loss: name of the one that the model was trained by, which makes probabilities of its logits; None
            where it is not known takes the one that is usual for the corpus's labels.
        columns: choose and order the model's outputs by the corpus's classes; None takes them as they are.
        label: of the progress bar; None shows none.
        way_out: of a run that may be told to stop while its images do not come.

    Raises:
        Stopped: all ranks have taken it.
        UserError: no image can be read, or what is kept of several labels per image finds no room.
    """
    _check_memory(corpus, ranks)
    model.eval()
    way_out = way_out or WayOut(ranks)
    loader = EvaluateLoader(
        corpus,
        augment,
        batch=batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=threads,
        decoder=decoder,
        meanwhile=way_out.look,
    )
    is_multi = corpus.label_kind == "multi"
    record = _Recorder(
        loss or ("sigmoid" if is_multi else "softmax"), classes=len(corpus.classes), multi=is_multi
    )
    bad: list[BadSample] = []
    began, in_model = time.monotonic(), 0.0
    shown = label is not None and ranks.is_main
    with progress(loader.samples, label or "", "images", enabled=shown) as bar:
        for one in way_out.before_the_end_of(loader):
            way_out.breathe()
            bad += one.bad
            if len(one):
                entered = time.monotonic()
                logits = _logits(model, on_device(one.images, ranks.device), augment, precision)
                logits = logits if columns is None else logits[:, columns]
                record(logits.cpu(), labels=one.labels, index=one.positions)
                in_model += time.monotonic() - entered
            bar.advance(len(one) + len(one.bad))
    way_out.agree()
    return Measurement(
        bad=_unread(bad, samples=corpus.samples, ranks=ranks),
        predictions=record.of_all(ranks),
        seconds=time.monotonic() - began,
        model_seconds=max(ranks.gather(in_model)),
    )


def _unread(own: Sequence[BadSample], *, samples: int, ranks: Ranks) -> list[dict[str, Any]]:
    """Return what no rank could read.

    Raises:
        UserError: that is all of the samples.
    """
    found = [sample for rank in ranks.gather([bad.to_dict() for bad in own]) for sample in rank]
    if len(found) == samples:
        first = f"; the first: {found[0]['reason']}" if found else ""
        raise UserError(f"none of the {len(found)} images to evaluate can be read{first}")
    return found


def _logits(model: nn.Module, images: Tensor, augment: AugmentConfig, precision: str) -> Tensor:
    """Return what the model says of a batch. Shape: uint8 (n, H, W, 3) → float32 (n, K)."""
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return model(normalise(images, mean=augment.mean, std=augment.std)).float()


def _check_memory(corpus: SampleSource, ranks: Ranks) -> None:
    """Refuse what would not fit before hours are spent; one label per image takes next to nothing."""
    pairs = corpus.samples * len(corpus.classes)
    needed = pairs * _BYTES_PER_PAIR * ranks.local_world_size
    free = available_memory().free
    if corpus.label_kind == "multi" and needed > free:
        raise UserError(
            f"{corpus.samples:,} images of {len(corpus.classes):,} classes: every score is kept, which takes "
            f"{needed / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} are free to this job; evaluate "
            "on fewer images, or in fewer processes"
        )


def top_classes(logits: Tensor, *, count: int) -> Tensor:
    """Return the best classes, best first; equal logits are ordered by the class's number.

    Shape: (n, K) → (n, min(count, K)).
    """
    best = logits.topk(min(count, logits.shape[1]), dim=1).indices.sort(dim=1).values
    values = logits.gather(1, best)
    best = best.gather(1, values.sort(dim=1, descending=True, stable=True).indices)
    # Which of equal ones are the last among the best only a sort of all tells, which takes 50 times as long.
    tied = (logits >= values.amin(dim=1, keepdim=True)).sum(dim=1) > best.shape[1]
    best[tied] = logits[tied].sort(dim=1, descending=True, stable=True).indices[:, :count]
    return best


class _Recorder:
    """Keeps what a model says, in the light of the loss that it was trained by."""

    def __init__(self, loss: str, *, classes: int, multi: bool) -> None:
        self._name, self._loss = loss, make_loss(loss, per_sample=True)
        self._parts: list[AnyPredictions] = []
        nothing = torch.zeros(0, dtype=torch.int64)  # a rank may have no image
        labels = torch.zeros(0, classes) if multi else nothing
        self(torch.zeros(0, classes), labels=labels, index=nothing)

    def __call__(self, logits: Tensor, *, labels: Tensor, index: Tensor) -> None:
        """Record a batch.

        Shape: logits (n, K); labels (n,), or (n, K) of presences; index (n,).
        """
        finite = logits.isfinite().all(dim=1)
        safe = torch.where(finite[:, None], logits, 0.0).double()
        own = {"index": index, "loss": torch.where(finite, self._loss(safe, labels), torch.inf)}
        if labels.ndim == 2:
            scores = log_odds(safe, self._name).round(decimals=_SCORE_DECIMALS)
            scores = torch.where(finite[:, None], scores, -torch.inf)
            own |= {"present": labels > 0.5, "scores": scores.float()}
        else:
            top = top_classes(safe, count=TOP)
            confidence = probabilities(safe, self._name).gather(1, top[:, :1])[:, 0]
            own |= {"label": labels, "top": torch.where(finite[:, None], top, -1)}
            own |= {"confidence": torch.where(finite, confidence, 0.0)}
        kind = MultiLabelPredictions if labels.ndim == 2 else Predictions
        self._parts.append(kind(**{name: tensor.numpy() for name, tensor in own.items()}))

    def of_all(self, ranks: Ranks) -> AnyPredictions:
        """Return what all ranks recorded, sorted by sample."""
        own = join(self._parts)
        if not ranks.distributed:
            return own
        arrays = {field.name: torch.from_numpy(getattr(own, field.name)) for field in fields(own)}
        return join([type(own)(**{name: ranks.rows(each).cpu().numpy() for name, each in arrays.items()})])
