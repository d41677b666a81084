"""What is predicted of one layout: plain data, with what follows from it. Predicts nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from cluster.planning.communication import Communication
from cluster.planning.memory import Layout, Memory
from cluster.planning.speed import Step
from cluster.planning.whole_run import RunTime

_FOLLOWING = (
    "fits", "memory_components", "step_seconds", "images_per_second", "loader_images_per_second_per_node",
    "days", "gpu_hours",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryChoice:
    """One row of the memory table."""

    zero_stage: int
    checkpointing: bool
    memory: Memory
    largest_micro_batch: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return {**dataclasses.asdict(self), "memory_bytes": self.memory.total}


@dataclass(frozen=True)
class Stretch:
    """Steps of one global batch in a run that changes it."""

    global_batch: int
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Timing:
    """What one step of a global batch takes.

    Args:
        loading: seconds in which images are read and nothing is computed.
    """

    accumulation: int
    step: Step
    communication: Communication
    loading: float

    @property
    def step_seconds(self) -> float:
        """Return the time of one step."""
        return self.step.seconds + self.communication.exposed + self.loading


@dataclass(frozen=True)
class Plan(Timing):
    """What is predicted for one layout. Seconds and bytes are of one rank; rates of the whole run.

    Args:
        in_process: a rank's memory is its process's, as on a CPU, and no card's.
        mfu: of the device's peak, what the model's own arithmetic is.
        read_bytes: of images, in the whole run; 110 kB each where the corpus is not readable from here.
        stretches: of a run that changes its global batch and whose length is known; layout, step and rates
            are those of the first batch, memory is that of the largest.
    """

    hardware: str
    nodes: int
    world_size: int
    layout: Layout
    global_batch: int
    parameters: int
    learning_parameters: int
    macs: float
    memory: Memory
    memory_limit_bytes: float
    in_process: bool
    mfu: float
    loader_cores_needed_per_node: float
    loader_cores_per_node: int
    checkpoint_bytes: float
    checkpoint_seconds: float
    checkpoints_kept: int
    read_bytes: float | None
    total_samples: int | None
    run: RunTime | None
    shards_per_rank: float | None
    stretches: list[Stretch]

    @property
    def fits(self) -> bool:
        """Return whether a rank's memory suffices."""
        return self.memory.total <= self.memory_limit_bytes

    @property
    def memory_components(self) -> dict[str, float]:
        """Return a rank's memory by component."""
        return self.memory.components()

    @property
    def measurable_bytes(self) -> float:
        """Return what a run measures of its memory: a GPU's allocator sees neither process nor fragments."""
        whole = self.memory.total
        return whole if self.in_process else whole - self.memory.process - self.memory.reserve

    @property
    def images_per_second(self) -> float:
        """Return the rate of the whole run, between evaluations."""
        return self.global_batch / self.step_seconds

    @property
    def loader_images_per_second_per_node(self) -> float:
        """Return the rate at which a node must decode."""
        return self.images_per_second / self.nodes

    @property
    def days(self) -> float | None:
        """Return the whole run's length, None where it depends on an unknown epoch."""
        return self.run.seconds / 86400 if self.run else None

    @property
    def gpu_hours(self) -> float | None:
        """Return what the whole run takes of all devices together."""
        return self.run.seconds / 3600 * self.world_size if self.run else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, with the names that metrics and reports use at the top."""
        return {
            **dataclasses.asdict(self),
            **{name: getattr(self, name) for name in _FOLLOWING},
            "memory_bytes": self.measurable_bytes,
            "memory_total_bytes": self.memory.total,
        }
