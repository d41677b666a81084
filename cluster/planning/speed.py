"""Step time from a roofline per operation, and from what calling so many operators takes of the host.

A roofline: the slower of arithmetic and traffic. Forward counts once; backward twice, for products (input's
and weight's gradients) and for the traffic. On cores the calls come on top; a GPU works while they are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout
from cluster.planning.operators import (
    COMMIT_CALLS,
    FORWARD_SHARE,
    LOOP_CALLS,
    MODULES_SHARE,
    PASS_CALLS,
    engine_of,
)
from cluster.planning.workload import Work

BACKWARD = 2.0
# AdamW reads weight, gradient and two moments and writes three of them back, in fp32.
_OPTIMIZER_BYTES = 28.0
FLOPS_PER_MAC = 2.0
# Uncompiled, every elementwise step is a pass of its own.
UNFUSED_PASSES = 1.35


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step on one device, without communication.

    Args:
        stages: forward and backward by stage, of all micro-batches.
        recomputed: forward passes taken again for activation checkpointing.
        sharding: stage 3's work around every layer.
        operators: the host's calls, as far as no device works meanwhile.
        backward: passes of all micro-batches, on a GPU as long as the host calls them if that takes longer.
        forward: of one micro-batch, calls included: what evaluating one takes.
        flops: what the model needs (recomputation not counted), for the MFU.
    """

    stages: dict[str, float]
    recomputed: float
    sharding: float
    optimizer: float
    operators: float
    backward: float
    forward: float
    flops: float

    @property
    def seconds(self) -> float:
        """Return the sum."""
        work = sum(self.stages.values()) + self.recomputed + self.optimizer
        return work + self.sharding + self.operators


def predict_step(works: Sequence[Work], *, layout: Layout, accumulation: int, hardware: Hardware) -> Step:
    """Return the time of `accumulation` micro-batches and one update."""
    stages: dict[str, float] = {}
    recomputed = flops = backward = 0.0
    for work in works:
        forward = accumulation * _forward_seconds(work, layout=layout, hardware=hardware)
        back = forward * _backward(work)
        stages[work.stage] = stages.get(work.stage, 0.0) + forward + back
        backward += back
        recomputed += forward if work.stage in layout.checkpointing else 0.0
        flops += accumulation * layout.micro_batch * work.macs * FLOPS_PER_MAC * (1.0 + _backward(work))
    learning = sum(work.parameters for work in works if work.learns)
    own = learning / (layout.world_size if layout.zero_stage else 1)
    layers = sum(work.parameters > 0 for work in works) if layout.zero_stage == 3 else 0
    passes, update = _calls(works, layout=layout, accumulation=accumulation)
    computing = sum(stages.values())
    working = 0.0 if hardware.shares_memory else computing + recomputed
    waiting = max(0.0, passes * hardware.operator_seconds - working)
    once = (computing - backward) / accumulation
    forward_calls = FORWARD_SHARE * (PASS_CALLS + _work_calls(works, layout=layout))
    calls = _with_modules(forward_calls, layout=layout) * hardware.operator_seconds
    return Step(
        stages=stages,
        recomputed=recomputed,
        sharding=accumulation * layers * hardware.sharding_seconds,
        optimizer=own * _OPTIMIZER_BYTES / hardware.copy_bytes_per_second,
        operators=waiting + update * hardware.operator_seconds,
        backward=backward * (1.0 + waiting / working) if working else backward,
        forward=once + calls if hardware.shares_memory else max(once, calls),
        flops=flops,
    )


def _calls(works: Sequence[Work], *, layout: Layout, accumulation: int) -> tuple[float, float]:
    """Return a step's operators until the gradients' norm is known, and those after it."""
    engine = engine_of(layout.zero_stage, is_ddp=layout.is_ddp)
    tensors = sum(work.tensors for work in works if work.learns)
    again = [work for work in works if work.stage in layout.checkpointing]
    network = _network_calls(works, layout=layout) + FORWARD_SHARE * _work_calls(again, layout=layout)
    around = engine.until_norm(tensors, accumulation=accumulation, world_size=layout.world_size)
    around += engine.interpreter(tensors, accumulation=accumulation)
    update = LOOP_CALLS + engine.update * tensors + COMMIT_CALLS * sum(work.grouped for work in works)
    return accumulation * _with_modules(network, layout=layout) + around, update


def _backward(work: Work) -> float:
    """Return what an operation's backward pass takes against its forward pass."""
    if not work.tracked:
        return 0.0
    input_alone = work.parameters and not work.learns
    return BACKWARD / 2 if input_alone else BACKWARD


def _network_calls(works: Sequence[Work], *, layout: Layout) -> float:
    tracked = [work for work in works if work.tracked]
    passed = [work for work in works if not work.tracked]
    return (
        PASS_CALLS + _work_calls(tracked, layout=layout) + FORWARD_SHARE * _work_calls(passed, layout=layout)
    )


def _with_modules(calls: float, *, layout: Layout) -> float:
    """Return a pass's calls with what Python takes between them; a compiled pass goes through no modules."""
    return calls if layout.compiled else calls * (1.0 + MODULES_SHARE)


def _work_calls(works: Sequence[Work], *, layout: Layout) -> float:
    found = (work.calls[layout.kernels] for work in works if work.calls)
    return sum(once + layout.groups * each for once, each in found)


def _forward_seconds(work: Work, *, layout: Layout, hardware: Hardware) -> float:
    batch = layout.micro_batch
    moved = (work.moved * batch + work.parameters) * layout.computed_bytes
    arithmetic = (
        work.macs * batch * FLOPS_PER_MAC / (hardware.peak_flops(layout.precision) * hardware.matmul_share)
    )
    shares = {"matmul": 1.0, "depthwise": hardware.depthwise_share, "attention": hardware.attention_share}
    share = shares.get(work.kind, hardware.elementwise_share)
    if work.kind == "elementwise" and not layout.compiled:
        moved *= UNFUSED_PASSES
    traffic = moved / (hardware.copy_bytes_per_second * share)
    return max(arithmetic, traffic) + hardware.kernel_seconds
