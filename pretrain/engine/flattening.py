"""Stages 1 and 2 keep all weights in one flat tensor: they move there one by one. Knows no model."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def moving_weights() -> Iterator[None]:
    """Let DeepSpeed flatten the weights of an engine that it builds in here without a second copy of them.

    It concatenates them, which holds the model twice until they are made views of the result. What it
    flattens later, gradients, has to stay as it is.
    """
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import stage_1_and_2

    building, places = True, (stage_1_and_2, bf16_optimizer)

    def flatten(tensors: Sequence[Tensor]) -> Tensor:
        return move(tensors) if building else concatenate(tensors)

    concatenate = stage_1_and_2._flatten_dense_tensors
    for module in places:
        module._flatten_dense_tensors = flatten
    try:
        yield
    finally:
        building = False
        for module in places:
            module._flatten_dense_tensors = concatenate


@torch.no_grad()
def move(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of all tensors in one flat tensor; each becomes a view of it when it is copied.

    The flat tensor grows on the host, where memory that was not written yet takes no pages, and goes to the
    tensors' device when nothing of them is left there.
    """
    device, start, return_pages = tensors[0].device, 0, _page_returner()
    flat = torch.empty(sum(one.numel() for one in tensors), dtype=tensors[0].dtype, device="cpu")
    for one in tensors:
        place = flat[start : start + one.numel()].view(one.shape)
        one.data = place.copy_(one)
        start += one.numel()
        return_pages(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return flat.to(device)


def stay(optimizer: Any) -> None:
    """Spare DeepSpeed's stages 1 and 2 pointing every weight at the flat tensor again after each step.

    The weights never leave it. It is most of what the host does when a GPU has nothing to do: four calls for
    each of a model's thousand tensors.
    """
    if hasattr(optimizer, "_update_model_bit16_weights"):
        optimizer._update_model_bit16_weights = lambda group: None


def _page_returner() -> Callable[[int], object]:
    """Return glibc's `malloc_trim`: memory of small tensors would stay with the process."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
