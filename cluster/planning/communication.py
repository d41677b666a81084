"""What ranks send each other in one step: rings inside a node and between nodes, a link per device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout

_FP32, _BF16 = 4, 2


@dataclass(frozen=True)
class Communication:
    """Seconds of one step: what the collectives take, and what of it compute does not hide."""

    collectives: dict[str, float]
    exposed: float
    sent_bytes: float

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
    3 gathers weights for every forward and backward pass besides.
    """
    gradient = parameters * (_BF16 if layout.precision == "bf16" else _FP32)
    weight = parameters * (_BF16 if layout.precision == "bf16" else _FP32)
    half = lambda size: _half_ring_seconds(size, layout=layout, hardware=hardware)  # noqa: E731
    stage = layout.zero_stage
    if layout.world_size == 1:
        return Communication({}, 0.0, 0.0)
    if stage == 0:
        collectives = {"all-reduce of gradients": 2 * half(gradient)}
    elif stage == 1:
        # DeepSpeed's stage 1 averages with an all-reduce-sized exchange only at the boundary
        collectives = {"reduce of gradients": half(gradient), "gather of weights": half(weight)}
    elif stage == 2:
        collectives = {
            "reduce of gradients": accumulation * half(gradient),
            "gather of weights": half(weight),
        }
    else:
        collectives = {
            "reduce of gradients": accumulation * half(gradient),
            "gather of weights": 2 * accumulation * half(weight),
        }
    total = sum(collectives.values())
    hidden = min(total, backward_seconds) * 0.8 if overlap and stage >= 2 else 0.0
    rounds = len(collectives)
    return Communication(collectives, total - hidden, rounds * gradient * (1 - 1 / layout.world_size))


def _half_ring_seconds(size: float, *, layout: Layout, hardware: Hardware) -> float:
    """Return a reduce-scatter's or an all-gather's time: inside the node, then its part between the nodes."""
    inside = min(layout.world_size, hardware.gpus_per_node)
    nodes = math.ceil(layout.world_size / hardware.gpus_per_node)
    seconds = (inside - 1) / inside * size / hardware.node_bytes_per_second
    if nodes > 1:
        seconds += (nodes - 1) / nodes * (size / inside) / hardware.network_bytes_per_second
        seconds += math.ceil(math.log2(nodes)) * hardware.network_latency_seconds
    return seconds
