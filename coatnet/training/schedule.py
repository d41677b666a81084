"""The learning rate as a pure function of the samples seen: a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """Rise linearly from 0 to `peak`; then fall to `minimum` as "cosine" or "linear", or stay ("constant").

    Units: lengths in samples, so changing the global batch in the middle of a run moves nothing.
    Source: arXiv 2106.04803, Table 10.
    """

    peak: float
    minimum: float
    warmup_samples: int
    total_samples: int
    shape: str = "cosine"

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
