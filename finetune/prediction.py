"""Name what image files show: a folder at a time, bad files named and passed over. Knows no web page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coatnet.config import UserError
from coatnet.runtime.progress import progress
from data_pipeline.assemble import Assembler
from data_pipeline.decode import probe
from data_pipeline.device import normalise
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.folder import FolderCorpus
from data_pipeline.record import Record
from finetune.classifier import Classifier
from finetune.evaluation.measure import top_classes

_PROGRESS_FROM = 64


@torch.inference_mode()
def predict_files(
    classifier: Classifier, files: Sequence[Path], *, top: int, batch: int, threads: int = 2
) -> list[dict[str, Any]]:
    """Return per file, in order, its guesses, best first, or an `error`."""
    corpus = FolderCorpus(Path(), classes=[], files=[(str(file), 0) for file in files])
    loader = EvaluateLoader(corpus, classifier.augment, batch=batch, threads=threads)
    found: dict[int, dict[str, Any]] = {}
    with progress(len(files), "predict", "images", enabled=len(files) >= _PROGRESS_FROM) as bar:
        for one in loader:
            if len(one):
                logits = classifier.model(prepare(one.images, classifier)).float().cpu()
                for position, own in zip(one.positions.tolist(), logits, strict=True):
                    found[position] = _row(own, classifier, top=top)
            for bad in one.bad:  # a reason that begins with the file's name is said beside it
                found[bad.position] = {"error": bad.reason.removeprefix(f"{bad.name}: ")}
            bar.advance(len(one) + len(one.bad))
    return [{"image": str(file), **found[position]} for position, file in enumerate(files)]


def load_square(payload: bytes, classifier: Classifier) -> Tensor:
    """Decode an image as the model sees it.

    Shape: uint8 (side, side, 3)

    Raises:
        DecodeError: no image, a broken one, or one that asks for too much.
    """
    info, side = probe(payload), classifier.augment.image_size
    record = Record(payload, info.width, info.height, info.orientation, label=0)
    out = np.empty((1, side, side, 3), dtype=np.uint8)
    assembler = Assembler(classifier.augment, training=False, num_classes=0, decoder="auto")
    (verdict,) = assembler.decode([record], np.zeros(1, dtype=np.int64), out)
    if verdict is not None:
        raise verdict
    return torch.from_numpy(out[0])


def prepare(squares: Tensor, classifier: Classifier) -> Tensor:
    """Return the model's input. Shape: uint8 (n, side, side, 3) → float32 (n, 3, side, side)."""
    return normalise(squares.to(classifier.device), mean=classifier.augment.mean, std=classifier.augment.std)


def guesses(logits: Tensor, classifier: Classifier, *, top: int) -> list[dict[str, Any]]:
    """Return one image's best classes with their probabilities. Shape: logits (K,).

    Raises:
        UserError: the logits are no numbers to go by, as where weights are not.
    """
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite, so there is no guess")
    shares = classifier.probabilities(logits)
    best = top_classes(logits[None], count=top)[0].tolist()
    names = classifier.names
    return [{"class": names[place], "index": place, "probability": float(shares[place])} for place in best]


def _row(logits: Tensor, classifier: Classifier, *, top: int) -> dict[str, Any]:
    try:
        return {"guesses": guesses(logits, classifier, top=top)}
    except UserError as error:
        return {"error": str(error)}
