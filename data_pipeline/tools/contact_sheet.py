"""A contact sheet of a corpus: images with their labels, plain above augmented."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.device import as_pictures, augmented
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.loader import TrainLoader
from data_pipeline.numbering import Numbering
from data_pipeline.permutation import shuffled
from data_pipeline.record import Record, SampleSource
from data_pipeline.training_order import make_order

_CAPTION = 16
_GAP = 4
_CHARACTER = 6  # pixels across, about, of the default font
_NAMED_LABELS = 2

_Cell = tuple[NDArray[np.uint8], str]


class _Chosen:
    """A few samples of a corpus, as a corpus of one shard."""

    remote = False
    fetching = ""

    def __init__(self, corpus: SampleSource, places: list[tuple[int, int]]) -> None:
        self._corpus, self._places = corpus, places
        self.classes, self.label_kind, self.digest = corpus.classes, corpus.label_kind, corpus.digest
        self.counts, self.samples = np.array([len(places)], dtype=np.int64), len(places)

    def read(self, shard: int, index: int) -> Record:
        return self._corpus.read(*self._places[index])

    def class_counts(self) -> NDArray[np.int64]:
        labels = [self.read(0, index).label for index in range(self.samples)]
        return np.bincount(labels, minlength=len(self.classes))

    def name(self, shard: int, index: int) -> str:
        return self._corpus.name(*self._places[index])

    def prepare(self, shards: list[int]) -> None:
        pass


def contact_sheet(
    corpus: SampleSource, augment: AugmentConfig, *, images: int, columns: int, seed: int
) -> Image.Image:
    """Draw randomly chosen images: each as evaluation sees it, and below it as training does."""
    numbering = Numbering(corpus.counts)
    numbers = shuffled(corpus.samples, seed)[:images].tolist()
    chosen = _Chosen(corpus, [numbering.place(number) for number in numbers])
    plain_augment = replace(augment, randaugment_n=0, mixup=0.0, cutmix=0.0, erasing=0.0)
    plain = next(iter(EvaluateLoader(chosen, plain_augment, batch=chosen.samples)))
    data = DataConfig()
    loader = TrainLoader([chosen], data, augment, seed=seed, global_batch=chosen.samples)
    with closing(loader.from_sample(0)) as stream:
        trained = next(stream)
    order = make_order([chosen], data, seed=seed, global_batch=chosen.samples)
    drawn = order.locate(trained.positions.numpy()).index
    below = dict(zip(drawn.tolist(), _augmented(trained, augment, corpus.classes), strict=True))
    above = [
        (image, _caption(label, corpus.classes))
        for image, label in zip(plain.images.numpy(), plain.labels, strict=True)
    ]
    pairs = [(cell, below[int(p)]) for p, cell in zip(plain.positions, above, strict=True)]
    return _draw(pairs, columns)


def _augmented(batch: Batch, augment: AugmentConfig, classes: list[str]) -> list[_Cell]:
    """Return a training batch's images as the model sees them, brought back to bytes, with their targets."""
    pixels, targets = augmented(
        batch.images,
        batch.labels,
        batch.keys,
        augment,
        num_classes=len(classes),
        group_images=max(2, len(batch)),
    )
    images = (as_pictures(pixels, augment) * 255).round().to(torch.uint8).numpy()
    return [
        (image, f"augmented: {_caption(target, classes)}")
        for image, target in zip(images, targets, strict=True)
    ]


def _caption(target: torch.Tensor, classes: list[str]) -> str:
    """Name a label, or the greatest of several, with the share of each where it is not all."""
    if target.ndim == 0:
        return classes[int(target)]
    shares, labels = target.float().topk(min(_NAMED_LABELS, len(target)))
    named = [(share, classes[n]) for share, n in zip(shares.tolist(), labels.tolist(), strict=True) if share]
    return ", ".join(name if share == 1.0 else f"{share:.2f} {name}" for share, name in named)


def _draw(pairs: list[tuple[_Cell, _Cell]], columns: int) -> Image.Image:
    size = pairs[0][0][0].shape[0]
    height = size + _CAPTION
    cell = (size + _GAP, 2 * height + 2 * _GAP)
    rows = ceil(len(pairs) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, pair in enumerate(pairs):
        left = _GAP + number % columns * cell[0]
        top = _GAP + number // columns * cell[1]
        for image, caption in pair:
            pen.text((left, top), caption[: max(size // _CHARACTER, 1)], fill="black")
            sheet.paste(Image.fromarray(image), (left, top + _CAPTION))
            top += height
    return sheet
