"""The `guard` section: when a step, a rank or a run is no longer trusted. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from coatnet.config.checks import above_zero, at_least_one, one_of

_YEAR = 31_536_000  # seconds


@dataclass
class GuardConfig:
    """What watches over a run.

    Attributes:
        max_skipped: stop after so many steps in a row without a finite gradient.
        spike: what follows a loss spike: "record" it, "skip" the step, or "rollback" to the checkpoint before
            and leave out the samples of the spike.
        spike_score: robust z-score (distance from the median in deviations) that makes a spike.
        spike_window: steps that the median is taken over, spikes included; before half of them nothing is
            judged, at the start and where the global batch or image size changes. A level that lasts for half
            of them is the usual one from then on.
        spike_steps: so many spiking steps in a row are needed for a rollback.
        max_rollbacks: in the whole run.
        replays: keep so many bad steps as bundles that `coatnet replay` takes again; 0 is off.
        digest_every: compare the weights of all ranks every so many steps; 0 is off.
        collect_every: Python's garbage collector runs every so many steps, on all ranks at once.
        straggler_ratio: a rank whose median step takes so much longer than the others' is named.
        hang_seconds: the least time without progress that counts as a hang; 5 × p99 of the steps if longer.
        start_seconds: the same until the first step is done (compilation takes its time).
    """

    max_skipped: int = 10
    spike: str = "record"
    spike_score: float = 12.0
    spike_window: int = 200
    spike_steps: int = 1
    max_rollbacks: int = 3
    replays: int = 4
    digest_every: int = 500
    collect_every: int = 200
    straggler_ratio: float = 1.3
    hang_seconds: float = 30.0
    start_seconds: float = 1800.0

    def __post_init__(self) -> None:
        one_of("spike", self.spike, ("record", "skip", "rollback"))
        for name in ("max_skipped", "spike_window", "spike_steps", "collect_every"):
            at_least_one(name, getattr(self, name))
        above_zero("spike_score", self.spike_score)
        for name in ("hang_seconds", "start_seconds"):
            if not 0.0 < getattr(self, name) <= _YEAR:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: above 0, up to {_YEAR} (a year)")
        if self.spike == "rollback" and self.spike_steps > max(1, self.spike_window // 2):
            raise ValueError(
                f"spike_steps is {self.spike_steps}; allowed: up to half of spike_window, {self.spike_window}"
            )
        if self.straggler_ratio <= 1:
            raise ValueError(f"straggler_ratio is {self.straggler_ratio}; allowed: above 1")
        for name in ("digest_every", "max_rollbacks", "replays"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
