"""The index of a shard in the making: a row per image, then the files beside the shard. Reads no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coatnet.runtime.whole_files import write_whole
from data_pipeline.index import FORMATS, LABEL, SAMPLE, ShardIndex, file_hash, index_path, labels_path
from data_pipeline.sharding.inspection import Judged
from data_pipeline.sharding.listing import Label


class IndexRows:
    """Rows in the order of their images."""

    def __init__(self, *, multi: bool) -> None:
        self._multi = multi
        self._rows: list[tuple[int, ...]] = []
        self._labels: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, image: Judged, label: Label, *, offset: int, checksum: int, size: int, image_at: int
    ) -> None:
        """Add an image.

        Args:
            label: as of `Item`.
            offset, checksum, size: of its record, of which the image begins at `image_at`.
        """
        info, count = image.info, 1
        assert info is not None, "skipped images have no row"
        if isinstance(label, list):
            self._labels += label
            count = len(label)
            label = len(self._labels) - count
        places = (offset, checksum, size, image_at, len(image.payload), info.width, info.height, label, count)
        self._rows.append((*places, image.flags, info.orientation, FORMATS.index(info.format), 0))

    def write(self, shard: Path) -> tuple[str, str | None]:
        """Write the files beside a shard, and return their hashes, as a manifest's entry ends with them.

        Raises:
            OSError: the disk is full or fails.
        """
        labels = np.array(self._labels, dtype=LABEL) if self._multi else None
        samples_file, labels_file = ShardIndex(np.array(self._rows, dtype=SAMPLE), labels).to_bytes()
        write_whole(index_path(shard), samples_file)
        if labels_file is None:
            return file_hash(samples_file), None
        write_whole(labels_path(shard), labels_file)
        return file_hash(samples_file), file_hash(labels_file)
