"""Name what image files show: a folder at a time, bad files named and passed over. Knows no web page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coatnet.runtime.progress import progress
from data_pipeline.assemble import Assembler
from data_pipeline.decode import DecodeError, probe
from data_pipeline.decode.image_file import read_image_file
from data_pipeline.device import normalise
from data_pipeline.record import Record
from finetune.classifier import Classifier
from finetune.evaluation.measure import top_classes
from finetune.image_files import image_files

_PROGRESS_FROM = 64


def predict_files(
    classifier: Classifier, paths: Sequence[Path], *, top: int, batch: int
) -> list[dict[str, Any]]:
    """Return per file its guesses, best first, or an `error`.

    Raises:
        UserError: a path does not exist, or a folder holds no files.
    """
    files = image_files(paths)
    rows: list[dict[str, Any]] = []
    with progress(len(files), "predict", "images", enabled=len(files) >= _PROGRESS_FROM) as bar:
        for start in range(0, len(files), batch):
            chosen = files[start : start + batch]
            rows += _predict_batch(classifier, chosen, top=top)
            bar.advance(len(chosen))
    return rows


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
    """Return one image's best classes with their probabilities. Shape: logits (K,)."""
    shares = classifier.probabilities(logits)
    best = top_classes(logits[None], count=top)[0].tolist()
    names = classifier.names
    return [{"class": names[place], "index": place, "probability": float(shares[place])} for place in best]


@torch.inference_mode()
def _predict_batch(classifier: Classifier, files: Sequence[Path], *, top: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    squares: list[Tensor] = []
    for file in files:
        try:
            squares.append(load_square(read_image_file(file), classifier))
            rows.append({"image": str(file)})
        except (OSError, DecodeError) as error:
            rows.append({"image": str(file), "error": str(error)})
    if squares:
        logits = iter(classifier.model(prepare(torch.stack(squares), classifier)).float().cpu())
        for row in rows:
            if "error" not in row:
                row["guesses"] = guesses(next(logits), classifier, top=top)
    return rows
