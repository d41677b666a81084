"""bf16 inside the network's own forward pass, where nothing between it and the loop can switch it off."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compute_in_bf16(model: nn.Module, *, device_type: str, cache: bool = True) -> None:
    """Let every forward pass of `model` compute in bf16 by autocast; its weights stay what they are.

    DeepSpeed's engine switches an autocast that surrounds it off, and asks torch about CUDA's alone: around
    the engine it works on a CPU, and a GPU computes in fp32 without a word but a warning.

    Args:
        model: given to DeepSpeed or not.
        cache: keep cast weights until the forward pass ends.
    """
    scope = _Scope(device_type, cache)
    model.register_forward_pre_hook(scope.enter, prepend=True)
    model.register_forward_hook(scope.leave, always_call=True)


class _Scope:
    """One autocast context that a forward pass enters and leaves, also by an exception."""

    def __init__(self, device_type: str, cache: bool) -> None:
        self._device_type, self._cache = device_type, cache
        self._open: list[torch.autocast] = []

    def enter(self, module: nn.Module, arguments: Any) -> None:
        context = torch.autocast(self._device_type, dtype=torch.bfloat16, cache_enabled=self._cache)
        context.__enter__()
        self._open.append(context)

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._open:  # an earlier hook may have failed before `enter`
            self._open.pop().__exit__(None, None, None)
