"""The two blocks: MBConv and transformer, both pre-activation residual. Activations are NHWC throughout.

1×1 convolutions are Linear layers on NHWC, so that no parameter has a channels-last layout (DeepSpeed's
broadcast refuses it) and no layout copy is made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.model.attention import RelativeAttention
from coatnet.model.family import EXPANSION, KERNEL_SIZE, SE_RATIO
from coatnet.model.stochastic_depth import keep_scale

NormFactory = Callable[[int], nn.Module]
_LAYER_NORM_EPS = 1e-5


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as the paper's lineage has it."""
    return F.gelu(x, approximate="tanh")


def max_pool(x: Tensor) -> Tensor:
    """Halve the resolution. Shape: (B, H, W, C) → (B, H/2, W/2, C)."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class DepthwiseConv(nn.Module):
    """A 3×3 convolution per channel, without bias. Shape: (B, H, W, C) → (B, H/stride, W/stride, C)."""

    def __init__(self, width: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(width, 1, KERNEL_SIZE, KERNEL_SIZE))

    def forward(self, x: Tensor) -> Tensor:
        nchw = x.permute(0, 3, 1, 2)
        y = F.conv2d(same_padding(nchw, self.stride), self.weight, stride=self.stride, groups=nchw.shape[1])
        return y.permute(0, 2, 3, 1)


def same_padding(x: Tensor, stride: int) -> Tensor:
    """Pad so that a 3×3 convolution keeps (or exactly halves) the size: TF's SAME, one-sided at stride 2."""
    return F.pad(x, (1, 1, 1, 1)) if stride == 1 else F.pad(x, (0, 1, 0, 1))


class SqueezeExcite(nn.Module):
    """Gate channels by their global mean. The squeeze width follows the block's output width."""

    def __init__(self, width: int, *, squeeze: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, squeeze)
        self.expand = nn.Linear(squeeze, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(x.mean(dim=(1, 2)))))
        return x * torch.sigmoid(gate)[:, None, None, :]


class Shortcut(nn.Module):
    """Max pooling where the block halves the resolution, a projection where it changes the width."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = nn.Linear(width_in, width) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool(x) if self.stride == 2 else x
        return x if self.project is None else self.project(x)


class MBConv(nn.Module):
    """x ← shortcut(x) + shrink(SE(depthwise(expand(norm(x))))).

    Shape: (B, H, W, Cin) → (B, H/stride, W/stride, C).
    Source: paper eq. 5: the stride sits in the first 1×1 convolution; "depthwise" is the DConv variant.
    """

    branches = 1

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        stride: int,
        stride_place: str,
        norm: NormFactory,
        drop_rate: float,
    ) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.drop_rates = (drop_rate,)
        self.expand_stride = stride if stride_place == "expand" else 1
        self.shortcut = Shortcut(width_in, width, stride=stride)
        self.norm = norm(width_in)
        self.expand = nn.Linear(width_in, hidden, bias=False)
        self.expand_norm = norm(hidden)
        self.depthwise = DepthwiseConv(hidden, stride=stride // self.expand_stride)
        self.depthwise_norm = norm(hidden)
        self.se = SqueezeExcite(hidden, squeeze=max(1, int(width * SE_RATIO)))
        self.shrink = nn.Linear(hidden, width)

    def forward(self, x: Tensor, draws: Tensor | None) -> Tensor:
        y = self.norm(x)
        if self.expand_stride == 2:
            y = y[:, ::2, ::2]
        y = gelu(self.expand_norm(self.expand(y)))
        y = gelu(self.depthwise_norm(self.depthwise(y)))
        y = self.shrink(self.se(y))
        return self.shortcut(x) + drop_path(y, draws, 0, self.drop_rates[0])


class TransformerBlock(nn.Module):
    """Relative attention and a feed-forward network, each on its own residual branch.

    Shape: (B, H, W, Cin) → (B, H/stride, W/stride, C). Source: paper eq. 4.
    """

    branches = 2

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        stride: int,
        head_size: int,
        grid: int,
        relative: bool,
        drop_rates: tuple[float, float],
    ) -> None:
        super().__init__()
        self.stride, self.drop_rates = stride, drop_rates
        self.shortcut = Shortcut(width_in, width, stride=stride)
        self.attention_norm = nn.LayerNorm(width_in, eps=_LAYER_NORM_EPS)
        self.attention = RelativeAttention(width_in, width, head_size=head_size, grid=grid, relative=relative)
        self.ffn_norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)
        self.ffn_expand = nn.Linear(width, EXPANSION * width)
        self.ffn_shrink = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor, draws: Tensor | None) -> Tensor:
        y = self.attention_norm(x)
        if self.stride == 2:
            y = max_pool(y)
        x = self.shortcut(x) + drop_path(self.attention(y), draws, 0, self.drop_rates[0])
        y = self.ffn_shrink(gelu(self.ffn_expand(self.ffn_norm(x))))
        return x + drop_path(y, draws, 1, self.drop_rates[1])


def drop_path(y: Tensor, draws: Tensor | None, branch: int, rate: float) -> Tensor:
    """Scale each sample's branch by 0 or 1/keep; no draws (B, branches), no dropping."""
    if draws is None or rate == 0.0:
        return y
    return y * keep_scale(draws[:, branch], rate).to(y.dtype)[:, None, None, None]
