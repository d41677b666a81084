"""The two blocks: MBConv and transformer, both pre-activation residual. Activations are NHWC throughout.

1×1 convolutions are Linear layers on NHWC, so that no parameter has a channels-last layout (DeepSpeed's
broadcast refuses it) and no layout copy is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet.model import rows
from coatnet.model.attention import RelativeAttention
from coatnet.model.config import ModelConfig
from coatnet.model.family import EXPANSION, KERNEL_SIZE, SE_RATIO, Architecture
from coatnet.model.gpu import dense, depthwise, excite, mbconv, moments
from coatnet.model.gpu.gelu import gelu
from coatnet.model.norm import GroupBatchNorm
from coatnet.model.pooling import max_pool


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    Args:
        norm: makes the norm of MBConv blocks.
    """

    config: ModelConfig
    plan: Architecture
    norm: Callable[[int], nn.Module]

    def activate(self, x: Tensor) -> Tensor:
        """GELU: by its tanh approximation in the paper's lineage."""
        if self.config.gelu == "exact":
            return F.gelu(x)
        return rows.gelu(x) if rows.fits(x) else gelu(x)

    def norm_activate(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Normalise and apply GELU."""
        if self.config.gelu == "tanh" and isinstance(norm, GroupBatchNorm):
            return norm(x, gelu=True)
        return self.activate(norm(x))

    def pool(self, x: Tensor) -> Tensor:
        """Halve the resolution. Shape: (B, H, W, C) → (B, H/2, W/2, C)."""
        if self.config.pooling == "max":
            return max_pool(x)
        return F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def convolve(x: Tensor, weight: Tensor, *, bias: Tensor | None, stride: int, padding: str) -> Tensor:
    """Convolve 3×3 on NHWC, dense or depthwise by the weight's shape; stride 1 keeps the size, 2 halves it.

    "same" is TensorFlow's: at stride 2 and an even size it pads below and to the right only.

    Shape: (B, H, W, Cin) → (B, H/stride, W/stride, C).
    """
    if bias is None and weight.shape[1] == 1 and depthwise.fits(x, stride=stride):
        return depthwise.depthwise(x, weight)
    if dense.fits(x, weight):
        return dense.convolve(x, weight, bias, stride=stride, padding=padding)
    nchw = x.permute(0, 3, 1, 2)
    groups = len(weight) if weight.shape[1] == 1 else 1
    if stride == 2 and padding == "same":
        y = F.conv2d(F.pad(nchw, (0, 1, 0, 1)), weight, bias, stride=2, groups=groups)
    else:
        y = F.conv2d(nchw, weight, bias, stride=stride, padding=KERNEL_SIZE // 2, groups=groups)
    return y.permute(0, 2, 3, 1)


class Conv(nn.Module):
    """A 3×3 convolution on NHWC; with `depthwise`, one filter per channel."""

    def __init__(
        self, width_in: int, width: int, *, stride: int, padding: str, bias: bool, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = nn.Parameter(torch.empty(width, 1 if depthwise else width_in, KERNEL_SIZE, KERNEL_SIZE))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, bias=self.bias, stride=self.stride, padding=self.padding)


class SqueezeExcite(nn.Module):
    """Gate channels by their global mean. The squeeze width follows the block's output width."""

    def __init__(self, width: int, *, squeeze: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, squeeze)
        self.expand = nn.Linear(squeeze, width)

    def gate(self, mean: Tensor) -> Tensor:
        """Return what each channel is multiplied by. Shape: (B, C) → the same."""
        return torch.sigmoid(self.expand(F.silu(self.reduce(mean))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(dim=(1, 2)))[:, None, None, :]


class Shortcut(nn.Module):
    """Pooling where the block halves the resolution, a projection where it changes the width."""

    def __init__(self, width_in: int, width: int, *, stride: int, style: Style) -> None:
        super().__init__()
        self.stride, self.style = stride, style
        self.project = nn.Linear(width_in, width) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.style.pool(x) if self.stride == 2 else x
        return x if self.project is None else self.project(x)


class MBConv(nn.Module):
    """x ← shortcut(x) + shrink(SE(depthwise(expand(norm(x))))).

    Shape: (B, H, W, Cin) → (B, H/stride, W/stride, C).
    Source: paper eq. 5: the stride sits in the first 1×1 convolution; "depthwise" is the DConv variant.
    """

    branches = 1

    def __init__(self, width_in: int, width: int, *, stride: int, style: Style) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.style, self.fused = style, False
        self.expand_stride = stride if style.plan.stride_place == "expand" else 1
        rest = stride // self.expand_stride
        self.shortcut = Shortcut(width_in, width, stride=stride, style=style)
        self.norm = style.norm(width_in)
        self.expand = nn.Linear(width_in, hidden, bias=False)
        self.expand_norm = style.norm(hidden)
        self.depthwise = Conv(
            hidden, hidden, stride=rest, padding=style.config.padding, bias=False, depthwise=True
        )
        self.depthwise_norm = style.norm(hidden)
        self.se = SqueezeExcite(hidden, squeeze=max(1, int(width * SE_RATIO)))
        self.shrink = nn.Linear(hidden, width)

    def forward(self, x: Tensor, scales: Tensor | None) -> Tensor:
        y = self.norm(x)
        if self.expand_stride == 2:
            y = y[:, ::2, ::2]
        y = self.expand(y)
        if self.fused and self.training and moments.fits(y):
            y = self._fused_middle(y)
        else:
            y = self.style.norm_activate(self.expand_norm, y)
            y = self.style.norm_activate(self.depthwise_norm, self.depthwise(y))
            y = self.se(y)
        y = self.shrink(y)
        return self.shortcut(x) + drop_path(y, scales, 0)

    def fuse(self) -> None:
        """Let the GPU's kernels join norms and depthwise convolution, if the block's form is theirs."""
        batch_norm = isinstance(self.depthwise_norm, GroupBatchNorm)
        self.fused = batch_norm and self.style.config.gelu == "tanh" and self.depthwise.stride == 1

    def _fused_middle(self, e: Tensor) -> Tensor:
        """Do what lies between both 1×1 convolutions by the GPU's kernels; the same mathematics."""
        first, second = self.expand_norm, self.depthwise_norm
        assert isinstance(first, GroupBatchNorm) and isinstance(second, GroupBatchNorm)
        mean, variance = first.moments(e)
        groups, width = mean.shape
        count = e.numel() // (groups * width)
        mean, scale = first.settle(mean, variance, count=count)
        y, *found = mbconv.activate_convolve(e, mean, scale, first.bias.float(), self.depthwise.weight)
        of_groups = second.settle(*found, count=count)
        mean, scale = (one.repeat_interleave(len(e) // groups, dim=0) for one in of_groups)  # of images
        bias = second.bias.float()
        gate = self.se.gate(excite.squeeze(y, mean, scale, bias).to(y.dtype))
        return excite.excite(y, mean, scale, bias, gate)


class TransformerBlock(nn.Module):
    """Relative attention and a feed-forward network, each on its own residual branch.

    Shape: (B, H, W, Cin) → (B, H/stride, W/stride, C). Source: paper eq. 4.
    """

    branches = 2

    def __init__(self, width_in: int, width: int, *, stride: int, style: Style, grid: int) -> None:
        super().__init__()
        self.style, self.stride = style, stride
        self.shortcut = Shortcut(width_in, width, stride=stride, style=style)
        self.attention_norm = nn.LayerNorm(width_in, eps=style.config.layer_norm_eps)
        self.attention = RelativeAttention(
            width_in,
            width,
            head_size=style.plan.head_size,
            grid=grid,
            relative=style.config.relative_attention,
        )
        self.ffn_norm = nn.LayerNorm(width, eps=style.config.layer_norm_eps)
        self.ffn_expand = nn.Linear(width, EXPANSION * width)
        self.ffn_shrink = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor, scales: Tensor | None) -> Tensor:
        y = self.attention_norm(x)
        if self.stride == 2:
            y = self.style.pool(y)
        x = self.shortcut(x) + drop_path(self.attention(y), scales, 0)
        y = self.ffn_shrink(self.style.activate(self.ffn_expand(self.ffn_norm(x))))
        return x + drop_path(y, scales, 1)


def drop_path(y: Tensor, scales: Tensor | None, branch: int) -> Tensor:
    """Scale each sample's branch by its 0 or 1/keep. Shape: scales (B, branches of the block)."""
    if scales is None:
        return y
    return y * scales[:, branch].to(y.dtype)[:, None, None, None]
