"""Machines as data: one YAML file each, package data in cluster/hardware/."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from coatnet.config import UserError, load_config

_MAY_BE_ZERO = (
    "kernel_seconds",
    "network_latency_seconds",
    "operator_seconds",
    "process_bytes",
    "reserve_share",
    "sharding_seconds",
    "start_seconds",
)
_FOLDER = Path(__file__).parents[1] / "hardware"


@dataclass
class Hardware:
    """One kind of node. A rank computes on one device: a GPU, or a core.

    Args:
        memory_bytes: of one device (of the whole machine where devices share it, as cores do).
        matmul_flops: peak by precision, 2 per multiply-add.
        matmul_share, elementwise_share, depthwise_share, attention_share: what is attained of the peak, or of
            the copy rate for the bandwidth-bound ones.
        kernel_seconds: least time of one kernel on a GPU.
        operator_seconds: what one of torch's operators takes of a core beside its work (interpreter,
            autograd, dispatcher). A GPU hides it as long as it has enough to do.
        sharding_seconds: what DeepSpeed's Python takes at stage 3 to gather, reduce and free one layer, per
            micro-batch; none where a device's queue hides it.
        node_bytes_per_second, network_bytes_per_second: one device's bus bandwidth inside a node and between.
        decode_images_per_core_second: of ImageNet's photographs, 110 kB each.
        storage_bytes_per_second: of one node's writes.
        start_seconds: from the command to the first step.
        process_bytes: what one rank takes before the model: interpreter, libraries, context, buffers.
        reserve_share: part of the memory that fragmentation takes.
    """

    name: str
    memory_bytes: float
    matmul_flops: dict[str, float]
    copy_bytes_per_second: float
    matmul_share: float = 0.7
    elementwise_share: float = 0.85
    depthwise_share: float = 0.5
    attention_share: float = 0.35
    kernel_seconds: float = 4e-6
    operator_seconds: float = 10e-6
    sharding_seconds: float = 0.0
    gpus_per_node: int = 8
    node_bytes_per_second: float = 1e11
    network_bytes_per_second: float = 1e10
    network_latency_seconds: float = 1e-5
    cores_per_gpu: int = 8
    decode_images_per_core_second: float = 976.0
    storage_bytes_per_second: float = 1e9
    start_seconds: float = 60.0
    process_bytes: float = 2e9
    reserve_share: float = 0.05
    shares_memory: bool = False  # devices are cores of one machine
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not {"bf16", "fp32"} <= set(self.matmul_flops) or min(self.matmul_flops.values()) <= 0:
            raise ValueError(f"matmul_flops is {self.matmul_flops}; allowed: bf16 and fp32, above 0")
        for name in (one.name for one in fields(self) if one.type in {"int", "float"}):
            value = getattr(self, name)
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise ValueError(f"{name} is {value}; allowed: above 0")

    @property
    def rank_memory_bytes(self) -> float:
        """Return what one rank may use."""
        return self.memory_bytes / (self.gpus_per_node if self.shares_memory else 1)

    def peak_flops(self, precision: str) -> float:
        """Return the peak of a precision; autocast computes in bf16."""
        return self.matmul_flops["fp32" if precision == "fp32" else "bf16"]


def hardware_names() -> list[str]:
    """Return the profiles that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_hardware(name: str, *, gpus_per_node: int | None = None) -> Hardware:
    """Read a profile by name, or by path if the name ends in .yaml.

    Args:
        gpus_per_node: of nodes that have, or give, other than the profile's.

    Raises:
        UserError: there is no such profile.
    """
    path = Path(name) if name.endswith(".yaml") else _FOLDER / f"{name.lower()}.yaml"
    if not path.is_file():
        raise UserError(f"hardware is {name!r}; allowed: {', '.join(hardware_names())}, or a .yaml file")
    hardware = load_config(Hardware, path)
    return hardware if gpus_per_node is None else replace(hardware, gpus_per_node=gpus_per_node)
