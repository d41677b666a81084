"""From records to pixels in a buffer: crops chosen, one decoder call per chunk. Knows no order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.crops import evaluation_boxes, random_resized_boxes
from data_pipeline.decode import decode_batch

if TYPE_CHECKING:
    from data_pipeline.decode import DecodeError
    from data_pipeline.record import Record


@dataclass(frozen=True)
class Assembler:
    """Turns records into images and labels.

    Attributes:
        training: random crops and flips from the keys; otherwise the crop of evaluation.
        num_classes: 0 for labels of one class each, else the width of multi-hot label rows.
    """

    augment: AugmentConfig
    training: bool
    num_classes: int
    decoder: str

    def decode(
        self, records: Sequence[Record], keys: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> list[DecodeError | None]:
        """Decode each record's crop into `out` and return what went wrong, where it did.

        Shape: keys (n,), out (n, size, size, 3).
        """
        orientation = self.augment.exif_orientation
        sizes = np.array([record.displayed_size(orientation) for record in records], dtype=np.int64)
        if self.training:
            boxes, flips = random_resized_boxes(sizes[:, 0], sizes[:, 1], keys, self.augment)
        else:
            boxes = evaluation_boxes(sizes[:, 0], sizes[:, 1], self.augment)
            flips = np.zeros(len(records), dtype=np.bool_)
        verdicts = decode_batch(
            [record.payload for record in records],
            boxes,
            flips,
            out,
            backend=self.decoder,
            interpolation=self.augment.interpolation,
            orientation=orientation,
        )
        return [None if verdict is None or verdict.usable else verdict for verdict in verdicts]

    def empty_images(self, count: int) -> torch.Tensor:
        """Return memory for the images of `count` records, pinned where there is a GPU."""
        shape = (count, self.augment.image_size, self.augment.image_size, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def label_array(self, count: int) -> NDArray[np.generic]:
        """Return an array of zeros for the labels of `count` records."""
        if self.num_classes:
            return np.zeros((count, self.num_classes), dtype=np.float32)
        return np.zeros(count, dtype=np.int64)

    def put_label(self, labels: NDArray[np.generic], row: int, record: Record) -> None:
        """Write a record's label, or its weighted labels, to a row of zeros."""
        if not self.num_classes:
            labels[row] = record.label
        elif record.labels is not None:
            labels[row, record.labels["label"]] = record.labels["weight"]
        else:
            labels[row, record.label] = 1
