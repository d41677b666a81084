"""One rank: batch norm with statistics of all ranks or of a node; saves what came out.

Arguments: sync, directory, rank, world size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from coatnet.model.norm import GroupBatchNorm, commit_statistics, defer_statistics

WIDTH, IMAGES_PER_RANK, GROUP = 6, 4, 2


def make_norm(sync: str, *, group_images: int) -> GroupBatchNorm:
    """Make a norm whose parameters are the same everywhere."""
    norm = GroupBatchNorm(WIDTH, group_images=group_images, momentum=0.1, eps=1e-3, sync=sync)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    return norm


def rank_images(rank: int) -> torch.Tensor:
    """Make a rank's images; ranks differ in mean and scale."""
    generator = torch.Generator().manual_seed(1 + rank)
    return torch.randn(IMAGES_PER_RANK, 5, 3, WIDTH, generator=generator) * (1 + rank) + 3 * rank


def loss_of(y: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Weigh outputs by the images, so that no gradient cancels."""
    return (y * images.detach().sin()).sum() + y.pow(3).sum()


def settled(norm: GroupBatchNorm, images: torch.Tensor) -> torch.Tensor:
    """Normalise as kernels that find the moments by themselves do."""
    mean, variance = norm.moments(images)
    parts = images.view(len(mean), -1, WIDTH)
    mean, scale = norm.settle(mean, variance, count=parts.shape[1])
    return ((parts - mean[:, None]) * scale[:, None] + norm.bias).view(images.shape)


def main() -> None:
    """Run forward, backward and a commit, in both forms."""
    sync, directory, rank, world = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    dist.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=world)
    state = {}
    for form, normalise in (("", GroupBatchNorm.forward), ("settled_", settled)):
        norm = make_norm(sync, group_images=GROUP)
        defer_statistics(norm)
        images = rank_images(rank).requires_grad_()
        y = normalise(norm, images)
        loss_of(y, images).backward()
        commit_statistics(norm, dist.all_reduce)
        found = {"y": y, "gradient": images.grad, "mean": norm.running_mean, "variance": norm.running_var}
        state |= {form + key: value for key, value in found.items()}
    torch.save(state, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
