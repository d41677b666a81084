"""Where a run stands. Everything here is plain JSON and travels in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.permutation import derive_keys

_MASK = (1 << 64) - 1
_DIGEST_KEY = 18
_CHUNK = 1 << 20


def digest_of_positions(positions: NDArray[np.int64]) -> int:
    """Return the sum of 32-bit hashes of positions: the same in any order, another if one is lost or doubled.

    A step's sum stays below 2^53, so that ranks can add theirs up in float64.
    """
    return int((derive_keys(_DIGEST_KEY, positions) >> np.uint64(32)).sum(dtype=np.uint64))


def digest_of_range(end: int) -> int:
    """Return the digest of positions 0 … end − 1, each once."""
    chunks = (np.arange(begin, min(begin + _CHUNK, end)) for begin in range(0, end, _CHUNK))
    return sum(digest_of_positions(chunk) for chunk in chunks) & _MASK


@dataclass
class State:
    """The run's position and the little history that later decisions depend on.

    Attributes:
        samples_seen: the only clock.
        step: optimizer steps tried, skipped ones included.
        applied_steps: those that changed the weights.
        skipped_in_a_row: until now.
        trained_digest: sum over all samples passed of a hash of their position: equal to
            `digest_of_positions` of the whole range when each came exactly once.
        losses, gradient_norms: of the last accepted steps; the guard's measure of what is normal.
        figures: of the last evaluation.
    """

    samples_seen: int = 0
    step: int = 0
    applied_steps: int = 0
    skipped_in_a_row: int = 0
    trained_digest: int = 0
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def advance(self, *, samples: int, applied: bool, digest: int) -> None:
        """Move on by one step."""
        self.samples_seen += samples
        self.trained_digest = (self.trained_digest + digest) & _MASK
        self.step += 1
        self.applied_steps += applied
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1

    def become(self, other: State) -> None:
        """Take over another state, keeping the object that everyone holds."""
        self.__dict__.update(other.__dict__)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a checkpoint's facts."""
        return asdict(self)
