"""Memory of one rank by component, for a ZeRO stage, a micro-batch and a choice of checkpointed stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.planning.hardware import Hardware
from cluster.planning.workload import Work, mode
from coatnet.config.overlap import WINDOW_COPIES, WINDOWS
from coatnet.runtime.memory import KEPT_BLOCK

_FP32, _BF16 = 4, 2
_MOMENTS = 2  # AdamW's
_DDP_BUCKET = 25 * 2**20 / _FP32
# On two CPU ranks what is freed leaves holes in the C library's heap, which holds blocks of up to 64 MiB and
# gives larger ones back. Fitted to the runs of benchmarks/plan.py and engine.py --memory.
_PAGES_KEPT = 2.2
_FLAT_COPIES = 4  # of all weights or gradients, that come and go in a step
_OWN_PART_COPIES = 1  # of all weights, where only a rank's part is small enough for the heap
_HOLES = 0.45  # beyond the activations that were freed, by glibc's count between steps: 0.35 and 0.48 of them
# Of a process on a CPU: what DeepSpeed loads and makes, which DDP does without; and what draws pictures.
_DEEPSPEED_BYTES = 49e6
_PICTURES_BYTES = 47e6
_INPUT_BYTES = 3 * (1 + 4)  # a pixel as it arrives (uint8) and normalised (float)


@dataclass(frozen=True)
class Layout:
    """How a run is spread over a machine.

    Args:
        checkpointing: stages whose activations are computed again in the backward pass.
        compiled: whether torch.compile fuses what is elementwise.
        fused: whether our kernels join what is in the middle of MBConv as well.
        rows: whether the CPU's extension does batch norm and GELU in one pass.
        groups: of images that a micro-batch is normalised in.
        sync: over the ranks of what such a group reaches, as `norm.sync` says.
        overlap: gradients are reduced beside the backward pass.
        is_ddp: torch's own data parallelism stands in DeepSpeed's place; gradients lie in its buckets.
        draws: whether evaluations draw pictures.
    """

    world_size: int
    zero_stage: int
    micro_batch: int
    precision: str = "bf16"
    checkpointing: tuple[str, ...] = ()
    ema: bool = False
    bucket_elements: int = 200_000_000
    compiled: bool = False
    fused: bool = False
    rows: bool = False
    groups: int = 1
    sync: str = "none"
    overlap: bool = False
    is_ddp: bool = False
    draws: bool = False

    @property
    def kernels(self) -> str:
        """Return which kernels compute, as `Work.calls` names them."""
        if self.compiled:
            return "compiled"
        return "rows" if self.rows and self.precision == "fp32" else "plain"

    @property
    def computed_bytes(self) -> int:
        """Return the size of a number that is computed with."""
        return _FP32 if self.precision == "fp32" else _BF16

    @property
    def held_bytes(self) -> int:
        """Return the size of a weight, and of its gradient."""
        return _BF16 if self.precision == "bf16" else _FP32


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by component; `activations` by stage.

    Args:
        snapshot: what a save copies in a process on a CPU, where that comes on top of a step's peak.
    """

    weights: float
    gradients: float
    optimizer: float
    ema: float
    casts: float
    activations: dict[str, float]
    buckets: float
    snapshot: float
    input: float
    process: float
    reserve: float

    @property
    def total(self) -> float:
        """Return the sum of all components."""
        return sum(self.components().values())

    def components(self) -> dict[str, float]:
        """Return every component by its name, the activations in one."""
        named = {"EMA" if name == "ema" else name: value for name, value in vars(self).items()}
        return {**named, "activations": sum(self.activations.values())}


def predict_memory(works: Sequence[Work], *, layout: Layout, hardware: Hardware, image_size: int) -> Memory:
    """Return the peak of one rank, at the end of a forward pass, when all activations are held.

    Source: the ZeRO stages as DeepSpeed keeps them; gpu profiles' process_bytes.
    """
    parameters = sum(work.parameters for work in works if work.learns)
    frozen = sum(work.parameters for work in works) - parameters
    world, stage = layout.world_size, layout.zero_stage
    held = layout.held_bytes
    weights = (parameters + frozen) * held / (world if stage == 3 else 1)
    gradients = parameters * held / (world if stage >= 2 else 1)
    if layout.precision == "bf16":  # summed in fp32; up to stage 1 each bf16 gradient goes at once
        sums = parameters * _FP32
        gradients = gradients + sums / world if stage >= 2 else sums
    # from stage 1 on, DeepSpeed steps on an fp32 copy of its own part, even where the weights are fp32
    copies = _MOMENTS + (1 if stage >= 1 or layout.precision == "bf16" else 0)
    optimizer = parameters * _FP32 * copies / (world if stage >= 1 else 1)
    ema = parameters * _FP32 / (world if stage >= 1 else 1) if layout.ema else 0.0
    casts = parameters * _BF16 if layout.precision == "autocast" and stage < 3 else 0.0
    activations = _held_at_once(works, layout=layout)
    alone = world == 1 or layout.is_ddp
    buckets = 0.0 if alone else _bucket_bytes(works, parameters=parameters, held=held, layout=layout)
    picture = layout.micro_batch * image_size**2 * _INPUT_BYTES
    model = weights + gradients + optimizer + ema + casts + sum(activations.values()) + buckets + picture
    reserve, process, snapshot = model * hardware.reserve_share, hardware.process_bytes, 0.0
    if hardware.shares_memory:
        reserve += _HOLES * sum(activations.values())
        reserve += _heap_bytes(parameters * held, stage=stage, world=world)
        # DeepSpeed's buckets and gradients are gone by then; DDP's gradients stay, and holes are too small
        kept = 0.0 if layout.is_ddp else buckets + gradients
        saved = parameters * _FP32 * (1 + _MOMENTS + layout.ema) / world + frozen * _FP32
        snapshot = max(0.0, saved - kept)
        process += _PICTURES_BYTES * layout.draws - _DEEPSPEED_BYTES * layout.is_ddp
    return Memory(
        weights, gradients, optimizer, ema, casts, activations, buckets, snapshot, picture, process,
        reserve,
    )  # fmt: skip


def saved_bytes(works: Sequence[Work], *, layout: Layout) -> dict[str, float]:
    """Return the activations that the backward pass finds, by stage."""
    stages: dict[str, float] = {}
    for work in works:
        one = _kept_bytes(work, layout) if work.tracked else 0.0
        if work.stage in layout.checkpointing:
            one = work.block_input * layout.computed_bytes
        stages[work.stage] = stages.get(work.stage, 0.0) + one * layout.micro_batch
    # while a backward pass runs, one block is there in full
    whole = {stage: _largest_block_bytes(works, layout, stage=stage) for stage in layout.checkpointing}
    if whole:
        largest = max(whole, key=lambda stage: whole[stage])
        stages[largest] += whole[largest] * layout.micro_batch
    return stages


def _held_at_once(works: Sequence[Work], *, layout: Layout) -> dict[str, float]:
    """Return the activations by stage: what is kept, or what passes by where nearly all is frozen."""
    kept = saved_bytes(works, layout=layout)
    passing = max((work for work in works if not work.tracked), key=lambda work: work.moved, default=None)
    if passing is not None:
        moved = passing.moved * layout.computed_bytes * layout.micro_batch
        kept[passing.stage] += max(0.0, moved - sum(kept.values()))
    return kept


def _kept_bytes(work: Work, layout: Layout) -> float:
    if layout.compiled:
        return 0.0 if layout.fused and work.fuses else work.kept * layout.computed_bytes
    return work.kept_bytes[mode(layout.precision, rows=layout.rows)]


def largest_micro_batch(works: Sequence[Work], *, layout: Layout, hardware: Hardware, image_size: int) -> int:
    """Return the largest micro-batch that fits, 0 for none. Memory is linear in it, so two points suffice."""
    one, two = (
        predict_memory(
            works, layout=replace(layout, micro_batch=batch), hardware=hardware, image_size=image_size
        ).total
        for batch in (1, 2)
    )
    return max(0, int((hardware.rank_memory_bytes - (2 * one - two)) / (two - one)))


def _heap_bytes(flat: float, *, stage: int, world: int) -> float:
    """Return the holes that DeepSpeed's flat copies of all weights leave in the heap."""
    if stage == 3:
        return _PAGES_KEPT * flat
    if stage == 0 or flat / world > KEPT_BLOCK:
        return 0.0
    return (_FLAT_COPIES if flat <= KEPT_BLOCK else _OWN_PART_COPIES) * flat


def _bucket_bytes(works: Sequence[Work], *, parameters: int, held: int, layout: Layout) -> float:
    bucket = bucket_elements(parameters, layout=layout)
    if layout.zero_stage == 0:
        return bucket * held
    if layout.zero_stage == 3:  # windows, and the largest layer with its gradient, which may exceed one
        return (WINDOW_COPIES * bucket + 2.0 * max(work.parameters for work in works)) * held
    # one that fills, its copy on the way, and beside the backward pass the one that was full before
    return (3.0 if layout.overlap else 2.0) * bucket * held


def bucket_elements(parameters: int, *, layout: Layout) -> float:
    """Return how many gradients go at a time (coatnet.training.deepspeed_config, and DDP's 25 MiB)."""
    if layout.is_ddp:
        return min(_DDP_BUCKET, parameters)
    parts = WINDOWS if layout.zero_stage == 3 or layout.overlap else 1
    return min(layout.bucket_elements, parameters / parts)


def _largest_block_bytes(works: Sequence[Work], layout: Layout, *, stage: str) -> float:
    blocks: dict[str, float] = {}
    for work in works:
        if work.stage == stage:
            blocks[work.block] = blocks.get(work.block, 0.0) + _kept_bytes(work, layout)
    return max(blocks.values(), default=0.0)
