"""The sections of a config that are pretraining's own. Knows no loop; imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coatnet.config.checks import above_zero, at_least_one, at_least_zero, counted, folder, one_of, within
from coatnet.training.sections import MOST_IMAGES, EvaluateConfig, TrainConfig

_STEPS = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_YEAR = 31_536_000  # seconds
_MOST_TRACED = 1000  # steps: a trace of one takes megabytes, and is kept in memory until the last


@dataclass
class BatchChange:
    """One change of the global batch.

    Attributes:
        at: when, in epochs, steps or images since the run's start.
        global_batch: from then on.
    """

    at: str = "0 steps"
    global_batch: int = 4096

    def __post_init__(self) -> None:
        counted("at", self.at, may_be_none=True)
        within("global_batch", self.global_batch, least=1, most=MOST_IMAGES)


@dataclass
class PretrainTrainConfig(TrainConfig):
    """How long, and in which batches.

    Attributes:
        batch_changes: later global batches, in order of time.
        activation_checkpointing: stages whose activations are recomputed, of S1 to S4.
        fused_mbconv: on a GPU, join MBConv's norms, GELU and depthwise convolution in kernels of ours: meant
            for `compile`, and not measured on a GPU yet.
    """

    batch_changes: list[BatchChange] = field(default_factory=list)
    activation_checkpointing: list[str] = field(default_factory=list)
    fused_mbconv: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_changes and self.phases:
            raise ValueError("phases and batch_changes are both given; allowed: one of them")


@dataclass
class PretrainEvaluateConfig(EvaluateConfig):
    """When and how to evaluate; both the weights and their average (`ema`) are.

    Attributes:
        transfer: path of a second labelled corpus, of any classes: how well its images' features find
            neighbours of their own class tells how the weights will transfer.
        neighbours: how many of them vote.
    """

    transfer: str | None = None
    neighbours: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        folder("transfer", self.transfer, allowed="a folder or a URL, or null")
        at_least_one("neighbours", self.neighbours)


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
        for name in ("digest_every", "max_rollbacks", "replays"):
            at_least_zero(name, getattr(self, name))
        if self.spike == "rollback" and self.spike_steps > max(1, self.spike_window // 2):
            raise ValueError(
                f"spike_steps is {self.spike_steps}; allowed: up to half of spike_window, {self.spike_window}"
            )
        if self.straggler_ratio <= 1:
            raise ValueError(f"straggler_ratio is {self.straggler_ratio}; allowed: above 1")


@dataclass
class ProfileConfig:
    """What torch.profiler traces.

    Attributes:
        steps: as in "100..110", both included; null for none, which costs nothing.
    """

    steps: str | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and not _STEPS.fullmatch(self.steps):
            raise ValueError(f"steps is {self.steps!r}; write for example '100..110'")
        if self.steps is not None and not self.window:
            raise ValueError(f"steps is {self.steps!r}; the last step comes before the first")
        if len(self.window) > _MOST_TRACED:
            raise ValueError(f"steps is {self.steps!r}; allowed: up to {_MOST_TRACED} steps")

    @property
    def window(self) -> range:
        """The steps that are traced."""
        found = _STEPS.fullmatch(self.steps or "")
        return range(int(found[1]), int(found[2]) + 1) if found else range(0)


@dataclass
class TuneConfig:
    """What is found out at the start.

    Attributes:
        micro_batch: "off", or "auto" for the largest that fits in every rank's memory.
    """

    micro_batch: str = "off"

    def __post_init__(self) -> None:
        one_of("micro_batch", self.micro_batch, ("off", "auto"))
