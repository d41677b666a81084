"""What ranks send each other in one step: rings inside a node and between nodes, a link per device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.planning.hardware import Hardware
from cluster.planning.memory import Layout, bucket_elements
from cluster.planning.operators import collectives as times

_FP32 = 4
_HIDDEN_SHARE = 0.8  # of what runs beside the backward pass
_NORM_SUMS = 4  # of a group's mean and of its variance over the ranks, and two for their gradients


@dataclass(frozen=True)
class Exchange:
    """A collective of one step over all weights that learn.

    Args:
        size: its bytes in the step.
        times: how often it goes over all weights.
        rings: how often the bytes pass every link: once to reduce and scatter or to gather, twice to do both.
        beside: the share of the backward passes that it may run beside.
    """

    name: str
    size: float
    times: int = 1
    rings: int = 1
    beside: float = 0.0


@dataclass(frozen=True)
class Communication:
    """Seconds of one step: what the collectives take, and what of it compute does not hide."""

    collectives: dict[str, float]
    exposed: float

    @property
    def seconds(self) -> float:
        """Return the sum of the collectives."""
        return sum(self.collectives.values())


def exchanges(parameters: int, *, layout: Layout, accumulation: int) -> list[Exchange]:
    """Return what a step sends; tests/integration/pretrain/test_communication.py counts it on ranks.

    At stages 1 and 2, too, DeepSpeed reduces gradients on all ranks and drops what is not a rank's own: at 1
    once, at 2 after every micro-batch. Then it gathers the weights. At 3 it reduces and scatters, and gathers
    for every pass.
    """
    if layout.world_size == 1:
        return []
    stage, weights = layout.zero_stage, parameters * layout.held_bytes
    reductions = accumulation if stage >= 2 else 1
    beside = reductions / accumulation * (layout.overlap or layout.is_ddp)
    if stage == 0:  # in fp32, whatever the weights are in
        return [Exchange("all-reduce of gradients", parameters * _FP32, rings=2, beside=beside)]
    reduced, rings = reductions * weights, 1 if stage == 3 else 2
    name = "reduce-scatter of gradients" if stage == 3 else "all-reduce of gradients"
    gathers = 2 * accumulation if stage == 3 else 1
    return [
        Exchange(name, reduced, times=reductions, rings=rings, beside=beside),
        Exchange("gather of weights", gathers * weights, times=gathers, beside=beside * (stage == 3)),
    ]


def predict_communication(
    *,
    parameters: int,
    norms: int,
    layout: Layout,
    accumulation: int,
    hardware: Hardware,
    backward_seconds: float,
) -> Communication:
    """Return the communication of one step.

    Each collective, and each small message by which the ranks agree, waits for a round trip. What runs beside
    the backward pass cannot begin before the first bucket is full, nor the last bucket before the pass ends.

    Args:
        norms: that take statistics of groups of images; with `norm.sync` a pass waits for their sums.
        backward_seconds: of all micro-batches.
    """
    collectives, exposed = {}, 0.0
    buckets = max(1.0, parameters / max(1.0, bucket_elements(parameters, layout=layout)))
    for exchange in exchanges(parameters, layout=layout, accumulation=accumulation):
        seconds = exchange.rings * _ring_seconds(
            exchange.size, calls=exchange.times * buckets, layout=layout, hardware=hardware
        )
        collectives[exchange.name] = seconds
        hideable = min(seconds * (1 - 1 / buckets), backward_seconds * exchange.beside)
        exposed += seconds - _HIDDEN_SHARE * hideable
    if collectives:
        nodes = math.ceil(layout.world_size / hardware.gpus_per_node)
        inside = hardware.network_latency_seconds
        everywhere = inside * (1 + math.ceil(math.log2(nodes)))
        waits = times(layout.zero_stage, is_ddp=layout.is_ddp) * everywhere
        sums = accumulation * layout.groups * norms * _NORM_SUMS
        reach = {"none": 0.0, "node": inside if layout.world_size > nodes else 0.0, "all": everywhere}
        collectives["sums of batch norm"] = sums * reach[layout.sync]
        collectives["small messages"] = waits
        exposed += waits + collectives["sums of batch norm"]
    return Communication(collectives, exposed)


def _ring_seconds(size: float, *, calls: float, layout: Layout, hardware: Hardware) -> float:
    """Return a reduce-scatter's or an all-gather's time: inside the node, then its part between the nodes."""
    inside = min(layout.world_size, hardware.gpus_per_node)
    nodes = math.ceil(layout.world_size / hardware.gpus_per_node)
    seconds = (inside - 1) / inside * size / hardware.node_bytes_per_second
    seconds += (nodes - 1) / nodes * (size / inside) / hardware.network_bytes_per_second
    return seconds + calls * math.ceil(math.log2(nodes)) * hardware.network_latency_seconds
