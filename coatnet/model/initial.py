"""A network's first weights, given module by module to one that was built on the meta device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from coatnet.model.attention import RelativeBias
from coatnet.model.blocks import Conv
from coatnet.model.norm import GroupBatchNorm

INIT_STD = 0.02
Placed = Callable[[nn.Module], None]


@torch.no_grad()
def materialise(
    model: nn.Module,
    *,
    device: torch.device,
    generator: torch.Generator,
    by_fan_in: bool,
    placed: Placed | None = None,
) -> None:
    """Allocate and fill every module's own parameters and buffers, one module after the other.

    Args:
        model: on the meta device.
        device: where the tensors come to lie.
        generator: of that device; the order of the draws is that of `model.modules()`.
        by_fan_in: draw kernels from N(0, 1/fan-in) instead of N(0, 0.02).
        placed: called with each module when it is filled, so that it can be sharded before the next one
            takes memory.
    """
    for module in model.modules():
        allocate(module, device=device, recurse=False)
        _fill(module, generator, by_fan_in=by_fan_in)
        if placed is not None:
            placed(module)


def allocate(module: nn.Module, *, device: torch.device | str, recurse: bool = True) -> None:
    """Give what is on the meta device memory, as `Module.to_empty` does.

    That asks `empty_like` of each, which off the meta device imports sympy: half a second at every start.
    """

    def placed(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    module._apply(placed, recurse)


def _fill(module: nn.Module, generator: torch.Generator, *, by_fan_in: bool) -> None:
    if isinstance(module, nn.Linear | Conv):
        std = module.weight[0].numel() ** -0.5 if by_fan_in else INIT_STD
        module.weight.normal_(std=std, generator=generator)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, RelativeBias):
        module.table.normal_(std=INIT_STD, generator=generator)
    elif isinstance(module, nn.LayerNorm | GroupBatchNorm):
        module.reset_parameters()
    else:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        assert not own, f"{type(module).__name__} has no first values"
