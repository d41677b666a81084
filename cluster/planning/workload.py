"""The model's operations as memory and time see them: an adapter over coatnet.model.operations."""

from __future__ import annotations

from dataclasses import dataclass

from coatnet.model.config import ModelConfig, architecture
from coatnet.model.operations import Operation, operations

# Which share of the machine's peak or copy rate an operation attains; what is not named is elementwise.
_CLASSES = {"conv": "matmul", "linear": "matmul", "depthwise": "depthwise", "attention": "attention"}


@dataclass(frozen=True)
class Work:
    """One operation on one image.

    Units: elements of activations, parameters and multiply-adds.

    Args:
        kind: matmul, depthwise, attention or elementwise.
        moved: read and written by a fused forward pass.
        kept: for the backward pass, when compiled; `kept_eager` when every step is a kernel of its own.
        block_input: what checkpointing keeps of the block, told by its first norm.
    """

    stage: str
    block: str
    kind: str
    parameters: int
    macs: int
    moved: float
    kept: float
    kept_eager: float
    block_input: float

    def kept_elements(self, *, compiled: bool) -> float:
        """Return what stays in memory until the backward pass."""
        return self.kept if compiled else self.kept_eager


def workload(config: ModelConfig, *, image_size: int) -> list[Work]:
    """Return the operations of a forward pass, in order."""
    head_size = architecture(config).head_size
    works, seen = [], set[str]()
    for operation in operations(config, image_size):
        first_norm = operation.kind == "norm" and operation.block_name not in seen
        if first_norm:
            seen.add(operation.block_name)
        works.append(_work(operation, head_size=head_size, first_norm=first_norm))
    return works


def _work(operation: Operation, *, head_size: int, first_norm: bool) -> Work:
    extra = 0.0
    if operation.kind == "gelu":
        extra = operation.reads  # eager GELU keeps its input, which a compiled one recomputes
    elif operation.kind == "attention":
        extra = operation.macs / (2 * head_size)  # the scores, heads × tokens × tokens
    return Work(
        stage=operation.stage,
        block=operation.block_name,
        kind=_CLASSES.get(operation.kind, "elementwise"),
        parameters=operation.parameters,
        macs=operation.macs,
        moved=operation.reads + operation.writes,
        kept=operation.saved,
        kept_eager=operation.saved + extra,
        block_input=operation.saved if first_norm else 0.0,
    )
