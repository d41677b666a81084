"""Sums over ranks that gradients flow through, for batch norm with statistics of a node or of the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_silent = False


@contextmanager
def silent_sums() -> Iterator[None]:
    """Leave the other ranks out inside: the same passes in the same memory, and nobody is waited for."""
    global _silent
    _silent = True
    try:
        yield
    finally:
        _silent = False


class SumOverRanks(torch.autograd.Function):
    """All-reduce; its gradient is the all-reduce of the gradients, for every loss depends on all terms."""

    @staticmethod
    def forward(context: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        context.group = group
        return _sum(value, group)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], context.group), None


def _sum(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = value.contiguous().clone()
    if not _silent:
        dist.all_reduce(total, group=group)
    return total


def mean_over_ranks(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Average a tensor over a group's ranks, with gradients."""
    return SumOverRanks.apply(value, group) / group.size()


def sync_group(sync: str) -> dist.ProcessGroup | None:
    """Return the ranks that share statistics: None for "none" and where there is but one.

    The first call for "node" is collective: every rank must come to it.

    Raises:
        ValueError: the ranks cannot be cut into nodes of LOCAL_WORLD_SIZE.
    """
    if sync == "none" or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    group = dist.group.WORLD if sync == "all" else _node_group(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return group if group is not None and group.size() > 1 else None


@cache
def _node_group(local_ranks: int) -> dist.ProcessGroup:
    world = dist.get_world_size()
    if world % local_ranks:
        raise ValueError(
            f'norm.sync is "node" with {world} ranks of {local_ranks} a node; allowed: nodes of equal size'
        )
    group, _ = dist.new_subgroups(group_size=local_ranks)
    return group
