"""The sections of a pretraining config that belong to the engine. Knows no loop; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

ZERO_STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "autocast", "bf16")


@dataclass
class ZeroConfig:
    """How DeepSpeed shards the state of training.

    Attributes:
        stage: 0 keeps everything on every rank, 1 shards AdamW's state, 2 the gradients too, 3 the weights
            too. Stage 1 suffices for every CoAtNet on 80 GB.
        overlap_communication: reduce gradients while the backward pass still runs (stages 2 and 3).
        bucket_elements: gradients are reduced in buckets of so many elements.
        persist_elements: stage 3 keeps parameters below this size on every rank.
    """

    stage: int = 1
    overlap_communication: bool = False
    bucket_elements: int = 200_000_000
    persist_elements: int = 10_000

    def __post_init__(self) -> None:
        if self.stage not in ZERO_STAGES:
            raise ValueError(f"stage is {self.stage}; allowed: {', '.join(map(str, ZERO_STAGES))}")
        if self.bucket_elements < 1:
            raise ValueError(f"bucket_elements is {self.bucket_elements}; allowed: 1 or more")
        if self.persist_elements < 0:
            raise ValueError(f"persist_elements is {self.persist_elements}; allowed: 0 or more")


@dataclass
class OptimizerConfig:
    """AdamW. The paper prints no betas; these are the defaults of its lineage.

    Attributes:
        lr: peak learning rate.
        clip: global norm that gradients are clipped to; 0 for none.
    """

    lr: float = 1e-3
    betas: list[float] | None = None
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        self.betas = self.betas or [0.9, 0.999]
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; allowed: above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; allowed: two numbers, each 0 ≤ beta < 1")
        if self.eps <= 0:
            raise ValueError(f"eps is {self.eps}; allowed: above 0")
        if self.weight_decay < 0 or self.clip < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, clip {self.clip}; allowed: 0 or more")
