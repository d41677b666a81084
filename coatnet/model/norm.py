"""Batch norm on NHWC by fixed groups of images, in fp32, with statistics that can wait for all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from coatnet.model import rows
from coatnet.model.gpu import moments
from coatnet.model.gpu.gelu import gelu as tanh_gelu
from coatnet.model.sync import mean_over_ranks, sync_group

_YOUNG_STEPS = 10  # the ramp of coatnet.training.ema: decay (1+t)/(10+t)


class GroupBatchNorm(nn.Module):
    """Normalise over each group of `group_images` consecutive images.

    With `sync` the groups of the same number on all ranks of a node ("node") or of the job ("all") are one;
    every rank must then feed as many images.

    While `deferred`, a training forward only adds up the groups' means and variances; `commit_statistics`
    turns the sums into one update that is equal on all ranks. Otherwise it is an ordinary batch norm.

    Shape: (B, H, W, C) → the same; the group must divide B.
    """

    running_mean: Tensor
    running_var: Tensor
    sums: Tensor
    groups: Tensor

    def __init__(
        self, width: int, *, group_images: int | None, momentum: float, eps: float, sync: str = "none"
    ) -> None:
        super().__init__()
        self.sync = sync
        self.group_images, self.momentum, self.eps = group_images, momentum, eps
        self.deferred = False
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))
        # Of the means and the variances of so many groups.
        self.register_buffer("sums", torch.empty(2, width), persistent=False)
        self.register_buffer("groups", torch.empty(()), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin with the identity and the statistics of a standard normal distribution."""
        for one, zero in ((self.weight, self.bias), (self.running_var, self.running_mean)):
            one.fill_(1.0)
            zero.zero_()
        self.forget()

    def forget(self) -> None:
        """Begin to add up anew."""
        self.sums.zero_()
        self.groups.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupBatchNorm:
        """Move statistics with the module but never cast them: DeepSpeed's bf16 calls module.bfloat16()."""
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Normalise; with `gelu` apply its tanh form too, in the same pass where the CPU's kernel can."""
        if self._rows_fit(x):
            return self._by_rows(x, gelu=gelu)
        y = self._plain(x)
        return tanh_gelu(y) if gelu else y

    def _plain(self, x: Tensor) -> Tensor:
        """Normalise by torch's operators: on any device, in any type, in fp32 at least, traceable."""
        dtype = x.dtype
        if not self.training:
            exact = torch.promote_types(dtype, torch.float32)
            scale = self.weight.to(exact) * torch.rsqrt(self.running_var.to(exact) + self.eps)
            shift = self.bias.to(exact) - self.running_mean * scale
            return torch.addcmul(shift, x.to(exact), scale).to(dtype)
        x = x.float()
        batch, group = x.shape[0], self._group(x)
        # The gradient of a split is a concatenation: a copy of the whole map, even where there is one part.
        parts = [self._normalise(part) for part in (x.split(group) if group < batch else [x])]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)

    def _group(self, x: Tensor) -> int:
        """Return the number of images that are normalised together."""
        batch = x.shape[0]
        group = min(self.group_images or batch, batch)
        if not batch or batch % group:
            raise ValueError(
                f"a batch of {batch} images cannot be cut into groups of {group} (norm.group_images)"
            )
        return group

    def _rows_fit(self, x: Tensor) -> bool:
        if not self.training or self.weight.dtype != torch.float32 or not rows.fits(x):
            return False
        return sync_group(self.sync) is None

    def _by_rows(self, x: Tensor, *, gelu: bool) -> Tensor:
        groups = x.shape[0] // self._group(x)
        y, means, variances = rows.normalise(
            x, self.weight, self.bias, groups=groups, eps=self.eps, gelu=gelu
        )
        for mean, variance in zip(means, variances, strict=True):
            self._record(mean, variance)
        return y

    def _normalise(self, x: Tensor) -> Tensor:
        """Normalise one group. F.batch_norm with momentum 1 hands its statistics back through the buffers."""
        ranks = sync_group(self.sync)
        if ranks is not None:
            return self._normalise_over_ranks(x, ranks)
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(
            x.permute(0, 3, 1, 2), mean, variance, self.weight.float(), self.bias.float(), True, 1.0, self.eps
        )
        self._record(mean, variance)
        return y.permute(0, 2, 3, 1)

    def _normalise_over_ranks(self, x: Tensor, ranks: ProcessGroup) -> Tensor:
        """Normalise one group whose images lie on several ranks; two all-reduces, and two more backwards."""
        mean = mean_over_ranks(x.mean(dim=(0, 1, 2)), ranks)
        centred = x - mean
        variance = mean_over_ranks(centred.square().mean(dim=(0, 1, 2)), ranks)
        count = ranks.size() * x.shape[0] * x.shape[1] * x.shape[2]
        self._record(mean, variance * (count / max(1, count - 1)))
        return torch.addcmul(
            self.bias.float(), centred, torch.rsqrt(variance + self.eps) * self.weight.float()
        )

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the groups' means and biased variances, with gradients. Shape: (groups, C) in fp32."""
        groups = x.shape[0] // self._group(x)
        if moments.fits(x):
            return moments.moments(x, groups)
        variance, mean = torch.var_mean(x.reshape(groups, -1, x.shape[-1]).float(), dim=1, correction=0)
        return mean, variance

    def settle(self, mean: Tensor, variance: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
        """Make a training pass of moments that a kernel or `moments` found: share and record them.

        Args:
            mean: of the groups of this rank's images; the variance is biased.
            variance: likewise.
            count: the elements behind each of them.

        Shape: (groups, C) → the mean and the factor of x − mean, (groups, C) each in fp32.
        """
        ranks = sync_group(self.sync)
        if ranks is not None:
            own, mean = mean, mean_over_ranks(mean, ranks)
            variance = mean_over_ranks(variance + (own - mean).square(), ranks)
            count *= ranks.size()
        for one, other in zip(mean, variance * (count / max(1, count - 1)), strict=True):
            self._record(one, other)
        return mean, self.weight.float() * torch.rsqrt(variance + self.eps)

    @torch.no_grad()
    def _record(self, mean: Tensor, variance: Tensor) -> None:
        if self.deferred:
            self.sums[0].add_(mean)
            self.sums[1].add_(variance)
            self.groups.add_(1)
        else:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)


def defer_statistics(model: nn.Module) -> None:
    """Let every batch norm add its statistics up until `commit_statistics`."""
    for module in _norms(model):
        module.deferred = True
    forget_statistics(model)


def forget_statistics(model: nn.Module) -> None:
    """Let every batch norm begin to add up anew."""
    for module in _norms(model):
        module.forget()


@torch.no_grad()
def commit_statistics(
    model: nn.Module, all_reduce: Callable[[Tensor], None] | None = None, *, step: int | None = None
) -> None:
    """Update the running statistics once, from all groups of all ranks since the last commit.

    Args:
        model: the model whose norms are deferred.
        all_reduce: sums a tensor over the ranks in place; one call carries all layers.
        step: of a model trained from scratch, from 1: young statistics forget their start faster. Without it
            3 % of the initial variance of 1 are left after 350 steps, where the true one may be 0.001.
    """
    norms = _norms(model)
    if not norms:
        return
    # A few operators on all layers at once: a GPU has nothing else to do meanwhile.
    flat = torch.cat([*(one.groups.view(1) for one in norms), *(one.sums.view(-1) for one in norms)])
    if all_reduce is not None:
        all_reduce(flat)
    counts, sums = flat.split([len(norms), flat.numel() - len(norms)])
    widths = [module.running_mean.numel() for module in norms]
    groups = torch.cat([one.expand(2 * width) for one, width in zip(counts.split(1), widths, strict=True)])
    young = 0.0 if step is None else (_YOUNG_STEPS - 1) / (_YOUNG_STEPS + step)
    momentum = torch.where(groups > 0, max(norms[0].momentum, young), 0.0)
    running = [statistics for one in norms for statistics in (one.running_mean, one.running_var)]
    moved = torch.cat(running).lerp_(sums / groups.clamp(min=1), momentum)
    torch._foreach_copy_(running, moved.split([width for width in widths for _ in range(2)]))
    torch._foreach_zero_([buffer for one in norms for buffer in (one.sums, one.groups)])


@contextmanager
def noted_already(part: nn.Module) -> Iterator[None]:
    """Compute a part of a model once more, and leave its statistics as they are."""
    buffers = [buffer for norm in _norms(part) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        if buffers:  # a transformer block has none
            torch._foreach_copy_(buffers, before)


def _norms(model: nn.Module) -> list[GroupBatchNorm]:
    return [module for module in model.modules() if isinstance(module, GroupBatchNorm)]
