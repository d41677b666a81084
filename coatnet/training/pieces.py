"""Which part of every parameter and of its AdamW moments this rank owns, at each ZeRO stage.

A piece is a window of one flattened parameter, with views into the fp32 master weight and both moments. All
pieces of all ranks cover every parameter exactly once at any stage and world size, which is what makes
checkpoints free of both. Knows no file and no loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.training.optimizer import MasterAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A window of a flattened parameter.

    Attributes:
        name, shape: of the whole parameter.
        start: the window's offset in the flattened parameter.
        values: by kind (weight, exp_avg, exp_avg_sq), 1-D views of fp32 state; writing changes the engine.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: dict[str, Tensor]

    @property
    def weight(self) -> Tensor:
        """The master weight's view."""
        return self.values["weight"]


def own_pieces(engine: Any, *, stage: int, rank: int, world_size: int) -> list[Piece]:
    """Return this rank's pieces of a DeepSpeed engine whose AdamW state has been created."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if stage == 0:
        return list(_pieces_of_replicas(engine, names, rank=rank, world_size=world_size))
    if stage in (1, 2):
        return list(_pieces_of_partitions(engine.optimizer, names))
    return list(_pieces_of_shards(engine.optimizer, names, rank=rank))


def create_moments(engine: Any, *, stage: int) -> None:
    """Create AdamW's state at once and not in the first step: it can be loaded, and memory runs out early."""
    inner = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    for tensor in _masters(engine, stage=stage):
        state = inner.state[tensor]
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
        on_device = inner.defaults.get("fused") or inner.defaults.get("capturable")
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu")
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def set_step_count(engine: Any, *, stage: int, steps: int) -> None:
    """Set AdamW's count of applied steps, on which its bias correction depends."""
    inner = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    for tensor in _masters(engine, stage=stage):
        inner.state[tensor]["step"].fill_(steps)


@torch.no_grad()
def publish(engine: Any, *, stage: int, pieces: list[Piece], world_size: int) -> None:
    """Spread weights that were written into the pieces to the parameters that the forward pass reads."""
    if stage == 0:
        _publish_replicas(engine, pieces, world_size=world_size)
    elif stage in (1, 2):
        engine.optimizer.update_lp_params()
    else:
        zero = engine.optimizer
        # What an earlier forward pass gathered is still there, and would be read instead of the new weights.
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _masters(engine: Any, *, stage: int) -> list[Tensor]:
    """The tensors that AdamW updates: parameters or their masters, flat partitions, or flat sub-groups."""
    if stage == 0:
        return [_master_of(engine, parameter) for parameter in _trained(engine)]
    if stage == 3:
        return engine.optimizer.fp32_partitioned_groups_flat
    # Stage 1 with bf16 weights is another class of DeepSpeed's, with other names for the same.
    if hasattr(engine.optimizer, "fp32_groups_flat_partition"):
        return engine.optimizer.fp32_groups_flat_partition
    return engine.optimizer.single_partition_of_fp32_groups


def _trained(engine: Any) -> list[nn.Parameter]:
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def _master_of(engine: Any, parameter: nn.Parameter) -> Tensor:
    """At stage 0: what AdamW updates for a parameter, itself unless it is in bf16."""
    if isinstance(engine.optimizer, MasterAdamW):
        return engine.optimizer.masters[parameter]
    return parameter


def _pieces_of_replicas(engine: Any, names: dict[int, str], *, rank: int, world_size: int) -> Iterator[Piece]:
    """Every rank holds everything: each takes an equal range of the line of all parameters."""
    parameters = _trained(engine)
    total = sum(parameter.numel() for parameter in parameters)
    first, end = total * rank // world_size, total * (rank + 1) // world_size
    offset = 0
    for parameter in parameters:
        low, high = max(first - offset, 0), min(end - offset, parameter.numel())
        if low < high:
            master = _master_of(engine, parameter)
            state = engine.optimizer.state[master]
            values = {kind: state[kind].view(-1)[low:high] for kind in MOMENTS}
            values["weight"] = master.data.view(-1)[low:high]
            yield Piece(names[id(parameter)], tuple(parameter.shape), low, values)
        offset += parameter.numel()


def _pieces_of_partitions(zero: Any, names: dict[int, str]) -> Iterator[Piece]:
    """Stages 1 and 2: DeepSpeed links each parameter to its window of the rank's flat fp32 partition."""
    for group in zero.bf16_groups if hasattr(zero, "bf16_groups") else zero.bit16_groups:
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                values = {kind: mapping.get_hp_fragment(kind) for kind in MOMENTS}
                values["weight"] = mapping.get_hp_fragment().detach()
                start = mapping.lp_fragment_address.start
                yield Piece(names[id(parameter)], tuple(parameter.shape), start, values)


def _pieces_of_shards(zero: Any, names: dict[int, str], *, rank: int) -> Iterator[Piece]:
    """Stage 3: every parameter is cut into equal windows, the last ones padded."""
    for parameters in zero.fp16_groups:
        for parameter in parameters:
            group, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            start = rank * length
            length = min(length, parameter.ds_numel - start)
            if length > 0:
                master = zero.fp32_partitioned_groups_flat[group]
                state = zero.optimizer.state[master]
                values = {kind: state[kind].narrow(0, offset, length) for kind in MOMENTS}
                values["weight"] = master.detach().narrow(0, offset, length)
                yield Piece(names[id(parameter)], tuple(parameter.ds_shape), start, values)


def _publish_replicas(engine: Any, pieces: list[Piece], *, world_size: int) -> None:
    in_bf16 = isinstance(engine.optimizer, MasterAdamW)
    if world_size == 1 and not in_bf16:
        return
    import torch.distributed as dist

    # Summed as integers, what nobody else owns being zero: every bit arrives, the sign of a zero too.
    owned = {piece.name: piece for piece in pieces}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        whole = torch.zeros(parameter.numel(), device=parameter.device)
        if name in owned:
            piece = owned[name]
            whole[piece.start : piece.start + len(piece.weight)] = piece.weight
        if world_size > 1:
            dist.all_reduce(whole.view(torch.int32))
        parameter.data.view(-1).copy_(whole)
