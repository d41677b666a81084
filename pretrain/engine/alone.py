"""A model that one rank can take through its passes without the others. Knows no data, step or optimizer."""

from __future__ import annotations

import torch
from torch import nn

from coatnet.config.overlap import WINDOW_COPIES
from coatnet.training.deepspeed_config import bucket_elements
from coatnet.training.sections import ZeroConfig


@torch.no_grad()
def stand_in(skeleton: nn.Module, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Give a model on the meta device weights that take no memory: all of them are one storage.

    Its activations are those of the true model. Every gradient is dropped as soon as it is there, as at stage
    3, where a rank keeps its shard.
    """
    largest = max(parameter.numel() for parameter in skeleton.parameters())
    storage = torch.zeros(largest, device=device, dtype=dtype)
    for module in skeleton.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = nn.Parameter(storage[: parameter.numel()].view(parameter.shape))
            weight.register_post_accumulate_grad_hook(lambda learned: setattr(learned, "grad", None))
            setattr(module, name, weight)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(buffer, device=device))
    return skeleton


def windows(
    model: nn.Module, zero: ZeroConfig, *, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Take the memory in which DeepSpeed gathers and reduces at stage 3, beside what a rank holds anyway."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    window = bucket_elements(zero, parameters=sum(sizes))
    taken = [window] * WINDOW_COPIES + [max(sizes)] * 2  # the largest layer may exceed a window
    return [torch.empty(size, device=device, dtype=dtype) for size in taken]
