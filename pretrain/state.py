"""Where a pretraining run stands, and the proof that each sample came once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coatnet.training.state import RunState
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
class State(RunState):
    """The run's position and the little history that later decisions depend on.

    Attributes:
        trained_digest: sum over all samples passed of a hash of their position: equal to
            `digest_of_positions` of the whole range when each came exactly once.
        losses, gradient_norms: of the last steps taken; the guard's measure of what is normal.
        phase_begin: where the stretch of one global batch and image size begins that they are of.
        spiking: taken steps in a row whose loss was a spike, until now.
        spike_step, spike_begin: number and position of the first of them.
    """

    trained_digest: int = 0
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    phase_begin: int = 0
    spiking: int = 0
    spike_step: int = 0
    spike_begin: int = 0

    def __post_init__(self) -> None:
        """Read back what is text in a checkpoint, since JSON has no such number."""
        self.losses, self.gradient_norms = [*map(float, self.losses)], [*map(float, self.gradient_norms)]

    def enter_phase(self, begin: int) -> None:
        """Forget what was normal where another global batch or image size begins."""
        if begin != self.phase_begin:
            self.phase_begin, self.spiking = begin, 0
            self.losses, self.gradient_norms = [], []

    def advance(self, *, samples: int, applied: bool, bad: int, digest: int = 0) -> None:
        """Move on by one step over samples of this digest."""
        super().advance(samples=samples, applied=applied, bad=bad)
        self.trained_digest = (self.trained_digest + digest) & _MASK
