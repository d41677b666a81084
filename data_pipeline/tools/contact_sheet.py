"""A contact sheet of a corpus: images with their labels, plain above augmented."""

from __future__ import annotations

import sys
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from coatnet.config import UserError
from coatnet.config.plain_text import plain
from data_pipeline.assemble import Assembler
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.device import as_pictures, augmented
from data_pipeline.numbering import Numbering
from data_pipeline.permutation import shuffled
from data_pipeline.record import BadSampleError, Record, SampleSource

_CAPTION = 16
_GAP = 4
_LETTERS = 10  # pixels
_CHARACTER = 6  # pixels across, about
_NAMED_LABELS = 2

_Cell = tuple[NDArray[np.uint8], str]


def contact_sheet(
    corpus: SampleSource, augment: AugmentConfig, *, images: int, columns: int, seed: int
) -> Image.Image:
    """Draw randomly chosen images: each as evaluation sees it, and below it as training does.

    Raises:
        UserError: none of them can be used.
    """
    multi = corpus.label_kind == "multi"
    views = [Assembler(augment, training, multi * len(corpus.classes), "auto") for training in (False, True)]
    found = _look_at(corpus, views, shuffled(corpus.samples, seed)[:images].tolist())
    if not found:
        raise UserError("none of the images that were chosen for the preview can be used")
    labels = views[0].label_array(len(found))
    for row, (_, record, _) in enumerate(found):
        views[0].put_label(labels, row, record)
    targets, keys = torch.from_numpy(labels), torch.tensor([number for number, _, _ in found])
    plain, trained = torch.from_numpy(np.stack([seen for _, _, seen in found], axis=1))
    captions = [_caption(label, corpus.classes) for label in targets]
    above = zip(plain.numpy(), captions, strict=True)
    below = _augmented(trained, targets, keys, augment, corpus.classes)
    return _draw([*zip(above, below, strict=True)], columns)


def _look_at(
    corpus: SampleSource, views: list[Assembler], numbers: list[int]
) -> list[tuple[int, Record, NDArray[np.uint8]]]:
    """Read samples, and return with each how it looks, (views, H, W, 3); name those that cannot be used."""
    numbering, side, found = Numbering(corpus.counts), views[0].augment.image_size, []
    for number in numbers:
        place, seen = numbering.place(number), np.empty((len(views), 1, side, side, 3), np.uint8)
        try:
            record, pairs = corpus.read(*place), zip(views, seen, strict=True)
            verdicts = [view.decode([record], np.array([number]), out)[0] for view, out in pairs]
            wrong: Exception | None = next(filter(None, verdicts), None)
        except BadSampleError as error:
            wrong = error
        if wrong is None:
            found.append((number, record, seen[:, 0]))
        else:
            print(plain(f"left out: {corpus.name(*place)}: {wrong}"), file=sys.stderr)
    return found


def _augmented(
    images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, augment: AugmentConfig, classes: list[str]
) -> list[_Cell]:
    """Return training images as the model sees them, brought back to bytes, with their targets."""
    pixels, targets = augmented(
        images, labels, keys, augment, num_classes=len(classes), group_images=max(2, len(images))
    )
    shown = (as_pictures(pixels, augment) * 255).round().to(torch.uint8).numpy()
    return [
        (image, f"augmented: {_caption(target, classes)}")
        for image, target in zip(shown, targets, strict=True)
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
    # Pillow's own font has no letters but ASCII's, and matplotlib's has Europe's.
    pen.font = ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _LETTERS
    )
    for number, pair in enumerate(pairs):
        left = _GAP + number % columns * cell[0]
        top = _GAP + number // columns * cell[1]
        for image, caption in pair:
            pen.text((left, top), caption[: max(size // _CHARACTER, 1)], fill="black")
            sheet.paste(Image.fromarray(image), (left, top + _CAPTION))
            top += height
    return sheet
