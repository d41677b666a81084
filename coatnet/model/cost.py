"""What a network costs per image: parameters, multiply-adds, the paper's FLOPs, bytes. Imports no torch.

Counted from the architecture's data alone, so that a login node can plan without building anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from coatnet.config.checks import multiple_of
from coatnet.model.config import ModelConfig, architecture
from coatnet.model.operations import Operation, operations

_BFLOAT16_BYTES = 2
_LOOKUP_BATCH = 8  # images per core over which the paper's count spreads the bias look-up
_LOOKUP_BATCH_LARGE = 2  # CoAtNet-6 and -7
_LARGE = ("coatnet_6", "coatnet_7")


@dataclass(frozen=True)
class Cost:
    """What a part of the network costs for one image.

    Units: `macs` multiply-adds; `paper_flops` as the paper prints them; in bf16, activations kept for the
    backward pass and bytes that a forward pass reads and writes when every operation is its own kernel.
    """

    name: str
    parameters: int
    macs: int
    paper_flops: float
    activation_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class StageCost(Cost):
    """A stage: what stands in it, and its blocks' costs."""

    kinds: str
    depth: int
    width: int
    side: int
    blocks: tuple[Cost, ...]


@dataclass(frozen=True)
class ModelCost(Cost):
    """The whole network at one input size, by stage and by kind of operation."""

    image_size: int
    stages: tuple[StageCost, ...]
    kinds: tuple[Cost, ...]


def model_cost(config: ModelConfig, image_size: int) -> ModelCost:
    """Count a network at an input size.

    Args:
        config: which network; its own `image_size` fixes the size of the bias tables.
        image_size: side of the square input in pixels.

    Raises:
        ValueError: image_size is not a multiple of 32, or too large.
    """
    multiple_of("image_size", image_size, 32)
    ops = list(operations(config, image_size))
    batch = _LOOKUP_BATCH_LARGE if config.name.startswith(_LARGE) else _LOOKUP_BATCH
    count = partial(_fields, lookup_batch=batch)
    kinds = dict.fromkeys(op.kind for op in ops)
    return ModelCost(
        **count(config.name, ops),
        image_size=image_size,
        stages=tuple(_stages(config, image_size, ops, count)),
        kinds=tuple(Cost(**count(kind, (op for op in ops if op.kind == kind))) for kind in kinds),
    )


def _fields(name: str, ops: Iterable[Operation], *, lookup_batch: int) -> dict:
    """Add operations up to the fields of a Cost.

    `paper_flops` is (float operations) // 2 as a graph profiler counts them: a MAC is two, an elementwise
    operation one, and the paper's code looks the bias up by matrix products once per core's batch.
    """
    ops = list(ops)
    macs = sum(op.macs for op in ops)
    lookup = sum(op.lookup_macs for op in ops) / lookup_batch
    return {
        "name": name,
        "parameters": sum(op.parameters for op in ops),
        "macs": macs,
        "paper_flops": macs + 0.5 * sum(op.float_ops for op in ops) + lookup,
        "activation_bytes": _BFLOAT16_BYTES * sum(op.saved for op in ops),
        "read_bytes": _BFLOAT16_BYTES * sum(op.reads for op in ops),
        "written_bytes": _BFLOAT16_BYTES * sum(op.writes for op in ops),
    }


def _stages(
    config: ModelConfig, image_size: int, ops: list[Operation], count: Callable[..., dict]
) -> Iterable[StageCost]:
    plan = architecture(config)
    side = image_size // plan.stem_stride
    stem = ("conv", 2) if plan.patch_size is None else ("patches", 1)
    shapes = [("S0", *stem, plan.stem_width, side)]
    for stage in plan.stages:
        side //= stage.stride
        kinds = " + ".join(f"{run.depth} {run.kind} {run.width}" for run in stage.runs)
        shapes.append((stage.name, kinds, stage.depth, stage.width, side))
    shapes.append(("head", "dense", 1, plan.width, 1))
    for name, kinds, depth, width, side in shapes:
        own = [op for op in ops if op.place.stage == name]
        blocks = dict.fromkeys(op.place.block_name for op in own)
        yield StageCost(
            **count(name, own),
            kinds=kinds,
            depth=depth,
            width=width,
            side=side,
            blocks=tuple(
                Cost(**count(block, (op for op in own if op.place.block_name == block))) for block in blocks
            ),
        )
