"""The learning rate as a pure function of the samples seen: a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class LearningRate:
    """Warm up linearly from 0 to `peak`, then fall to `minimum` in the given shape.

    Units: lengths in samples, so changing the global batch in the middle of a run moves nothing.
    Source: arXiv 2106.04803, Table 10.
    """

    peak: float
    minimum: float
    warmup_samples: int
    total_samples: int
    shape: str = "cosine"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape is {self.shape!r}; allowed: {', '.join(SHAPES)}")
        if not 0 <= self.minimum <= self.peak:
            raise ValueError(f"minimum is {self.minimum}; allowed: 0 ≤ minimum ≤ peak ({self.peak})")
        if not 0 <= self.warmup_samples <= self.total_samples:
            raise ValueError(
                f"warmup is {self.warmup_samples} samples; allowed: 0 to the run's {self.total_samples}"
            )

    def __call__(self, samples_seen: int) -> float:
        """Return the rate of the step that ends at `samples_seen`; the last step gets `minimum`."""
        if samples_seen < self.warmup_samples:
            return self.peak * samples_seen / self.warmup_samples
        if self.shape == "constant":
            return self.peak
        length = max(1, self.total_samples - self.warmup_samples)
        done = min(1.0, (samples_seen - self.warmup_samples) / length)
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.minimum + (self.peak - self.minimum) * left
