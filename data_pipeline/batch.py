"""What loaders hand to the training loop: batches, and the names of bad samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used.

    Attributes:
        position: in the order (training), or the sample's number (evaluation).
        name: the sample, for people.
        reason: what is wrong with it.
        substitute: the sample that took its place; None in evaluation, where it is left out.
    """

    position: int
    name: str
    reason: str
    substitute: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for an event log."""
        return asdict(self)


@dataclass(frozen=True)
class Tail:
    """The last step of an epoch, filled up with samples of its own that count for nothing.

    Shape: weights float32 (n,), such that the weighted mean over all ranks is the mean of the step's own
    samples: global_batch / samples for one of them, 0 for one that fills.

    Attributes:
        samples: the step's own, of all ranks together.
    """

    samples: int
    weights: Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step.

    Attributes:
        tail: of a step that was filled up; None for a full one.

    Shape: images uint8 (n, H, W, 3); labels int64 (n,), or float32 (n, K) of a multi-label corpus;
    positions, keys int64 (n,). A key is a hash of (seed, epoch, sample) that augmentation draws from.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    keys: Tensor
    bad: list[BadSample] = field(default_factory=list)
    tail: Tail | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def blank(cls, *, image_size: int, samples: int) -> Batch:
        """Return one of black images, for steps that nobody takes."""
        rows = torch.arange(samples)
        images = torch.zeros(samples, image_size, image_size, 3, dtype=torch.uint8)
        return cls(images, torch.zeros(samples, dtype=torch.int64), rows, rows)

    @property
    def seen(self) -> Tensor:
        """The positions of the samples that count."""
        return self.positions if self.tail is None else self.positions[self.tail.weights > 0]

    def step_samples(self, world_size: int) -> int:
        """Return how many samples count in the step, of all ranks together."""
        return len(self) * world_size if self.tail is None else self.tail.samples
