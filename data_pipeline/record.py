"""One sample as a reader hands it on, and how a bad one is named. Knows no file."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Record(NamedTuple):
    """A sample's bytes and what is known about them; a tuple, since one is made for every image read.

    Attributes:
        payload: the image's bytes; of a shard, a view of what was read: a copy costs as much as its hash.
        label: the class of a single-label corpus; 0 in a multi-label one.
        labels: rows of (label, weight) of a multi-label corpus.
    """

    payload: bytes | memoryview
    width: int
    height: int
    orientation: int
    label: int
    labels: NDArray[np.void] | None = None

    def displayed_size(self, orientation: str) -> tuple[int, int]:
        """Return width and height of the image as the decoder will turn it ("ignore" or "apply")."""
        turned = orientation == "apply" and self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)


class BadSampleError(Exception):
    """A sample cannot be used: its bytes, its index or its shard are damaged or gone."""


class LostSampleError(BadSampleError):
    """Its file cannot be had at all: nothing that was read is to blame."""


class SampleSource(Protocol):
    """A corpus as loaders see it: shards of samples, known by (shard, index). By default it lies here.

    Attributes:
        counts, samples: of each shard, and in all.
        remote: reading waits for a network, so that `prepare` is worth its price.
    """

    classes: list[str]
    label_kind: str
    digest: str
    counts: NDArray[np.int64]
    samples: int
    remote: bool = False

    def read(self, shard: int, index: int) -> Record:
        """Return a sample.

        Raises:
            BadSampleError: it is damaged or gone.
        """
        ...

    def class_counts(self, *, share: int = 0, shares: int = 1) -> NDArray[np.int64]:
        """Return how many samples each class has, with one label per image, without reading an image.

        Args:
            share, shares: count one of so many parts alone, which together are the whole.

        Raises:
            BadSampleError: an index is damaged or gone.
        """
        ...

    def name(self, shard: int, index: int) -> str:
        """Name a sample for reports; never fails."""
        ...

    @property
    def fetching(self) -> str:
        """Name a file that is being fetched, and why it does not come; empty where none is."""
        return ""

    def prepare(self, shards: list[int]) -> None:
        """Announce shards that will be read soon, the most urgent first."""
        return
