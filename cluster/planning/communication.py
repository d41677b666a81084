"""What ranks send each other in one step: rings inside a node and between nodes, a link per device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout
from cluster.planning.operators import collectives as times

_FP32, _BF16 = 4, 2
_HIDDEN_SHARE = 0.8  # of what overlaps with the backward pass


@dataclass(frozen=True)
class Communication:
    """Seconds of one step: what the collectives take, and what of it compute does not hide."""

    collectives: dict[str, float]
    exposed: float

    @property
    def seconds(self) -> float:
        """Return the sum of the collectives."""
        return sum(self.collectives.values())


def predict_communication(
    *,
    parameters: int,
    layout: Layout,
    accumulation: int,
    hardware: Hardware,
    backward_seconds: float,
    overlap: bool,
) -> Communication:
    """Return the communication of one step by ZeRO stage.

    Stage 0 reduces gradients on all ranks; 1 reduces and gathers weights; 2 reduces after every micro-batch;
    3 gathers weights for every forward and backward pass besides. Each collective, and each small message by
    which the ranks agree, waits for a round trip.
    """
    gradient = parameters * (_BF16 if layout.precision == "bf16" else _FP32)
    weight = parameters * (_BF16 if layout.precision == "bf16" else _FP32)
    if layout.world_size == 1:
        return Communication({}, 0.0)
    reduce = _half_ring_seconds(gradient, layout=layout, hardware=hardware)
    gather = _half_ring_seconds(weight, layout=layout, hardware=hardware)
    stage = layout.zero_stage
    if stage == 0:
        collectives = {"all-reduce of gradients": 2 * reduce}
    else:
        reductions = accumulation if stage >= 2 else 1
        gathers = 2 * accumulation if stage == 3 else 1
        collectives = {"reduce of gradients": reductions * reduce, "gather of weights": gathers * gather}
    nodes = math.ceil(layout.world_size / hardware.gpus_per_node)
    waits = times(stage, is_ddp=layout.is_ddp) * hardware.network_latency_seconds
    collectives["small messages"] = waits * (1 + math.ceil(math.log2(nodes)))
    total = sum(collectives.values())
    hidden = min(total, backward_seconds) * _HIDDEN_SHARE if overlap and stage >= 2 else 0.0
    return Communication(collectives, total - hidden)


def _half_ring_seconds(size: float, *, layout: Layout, hardware: Hardware) -> float:
    """Return a reduce-scatter's or an all-gather's time: inside the node, then its part between the nodes."""
    inside = min(layout.world_size, hardware.gpus_per_node)
    nodes = math.ceil(layout.world_size / hardware.gpus_per_node)
    seconds = (inside - 1) / inside * size / hardware.node_bytes_per_second
    if nodes > 1:
        seconds += (nodes - 1) / nodes * (size / inside) / hardware.network_bytes_per_second
        seconds += math.ceil(math.log2(nodes)) * hardware.network_latency_seconds
    return seconds
