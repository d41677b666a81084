"""The sections of a config that are pretraining's own. Knows no loop; imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coatnet.config.checks import at_least_one, counted, folder, one_of, within
from coatnet.training.sections import MOST_IMAGES, EvaluateConfig, TrainConfig

_STEPS = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
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
        for stage in self.activation_checkpointing:
            one_of("activation_checkpointing", stage, ("S1", "S2", "S3", "S4"))


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
