"""CoAtNet: stem, stages, head; built from the family's data. Knows nothing of data, ranks or DeepSpeed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coatnet.config import UserError
from coatnet.model.attention import RelativeBias
from coatnet.model.blocks import DepthwiseConv, MBConv, NormFactory, TransformerBlock, gelu, same_padding
from coatnet.model.config import ModelConfig, NormConfig, architecture
from coatnet.model.family import KERNEL_SIZE, Architecture
from coatnet.model.norm import GroupBatchNorm
from coatnet.model.stochastic_depth import uniform

Block = MBConv | TransformerBlock
_INIT_STD = 0.02
_LAYER_NORM_EPS = 1e-5
_TOTAL_STRIDE = 32


class Stem(nn.Module):
    """S0: two 3×3 convolutions, the first of stride 2. Shape: (B, H, W, 3) → (B, H/2, W/2, C)."""

    def __init__(self, width: int, *, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, KERNEL_SIZE, stride=2)
        self.norm = norm(width)
        self.conv2 = nn.Conv2d(width, width, KERNEL_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(same_padding(x.permute(0, 3, 1, 2), 2)).permute(0, 2, 3, 1)
        x = gelu(self.norm(x))
        return self.conv2(same_padding(x.permute(0, 3, 1, 2), 1)).permute(0, 2, 3, 1)


class Head(nn.Module):
    """Global mean, norm, dense, tanh, logits. Shape: (B, H, W, C) → (B, classes)."""

    def __init__(self, width: int, *, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)
        self.dense = nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return what enters the last layer. Shape: (B, C)."""
        return torch.tanh(self.dense(self.norm(x.mean(dim=(1, 2)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


class CoAtNet(nn.Module):
    """The network. `stages` maps S1…S4 to lists of blocks.

    Shape: images (B, 3, H, W), any memory format, H and W divisible by 32 → logits (B, classes).
    """

    def __init__(self, config: ModelConfig, *, norm: NormConfig) -> None:
        super().__init__()
        self.config = config
        plan = architecture(config)
        make_norm = _norm_factory(config, norm)
        self.stem = Stem(plan.stem_width, norm=partial(GroupBatchNorm, **_norm_arguments(norm)))
        self.stages = nn.ModuleDict(_stages(plan, config, make_norm))
        self.head = Head(plan.width, num_classes=config.num_classes)
        self._checkpointed: frozenset[str] = frozenset()
        self._branches = sum(block.branches for _, block in self.blocks())

    def forward(self, images: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        return self.head(self.trunk(images, sample_keys=sample_keys))

    def features(self, images: Tensor) -> Tensor:
        """Return the vector that enters the last layer. Shape: (B, 3, H, W) → (B, C)."""
        return self.head.features(self.trunk(images))

    def trunk(self, images: Tensor, *, sample_keys: Tensor | None = None) -> Tensor:
        """Return the last stage's map. Shape: (B, 3, H, W) → (B, H/32, W/32, C).

        Raises:
            UserError: a side is not divisible by 32.
        """
        height, width = images.shape[-2:]
        if height % _TOTAL_STRIDE or width % _TOTAL_STRIDE:
            raise UserError(
                f"images are {height}×{width} px; both sides must be divisible by {_TOTAL_STRIDE}"
            )
        draws = self._draws(images, sample_keys)
        x = self.stem(images.permute(0, 2, 3, 1))
        branch = 0
        for stage, block in self.blocks():
            own = None if draws is None else draws[:, branch : branch + block.branches]
            branch += block.branches
            if stage in self._checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, own, use_reentrant=False)
            else:
                x = block(x, own)
        return x

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Yield (stage name, block) from the first to the last."""
        for name, stage in self.stages.items():
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                assert isinstance(block, MBConv | TransformerBlock)
                yield name, block

    def set_activation_checkpointing(self, stages: list[str]) -> None:
        """Recompute the blocks of these stages in the backward pass instead of keeping their activations."""
        unknown = sorted(set(stages) - set(self.stages))
        if unknown:
            raise UserError(
                f"activation checkpointing: no stage {unknown[0]}; allowed: {', '.join(self.stages)}"
            )
        self._checkpointed = frozenset(stages)

    def compile_blocks(self) -> None:
        """Compile every block in place; blocks of one shape share the compiled code."""
        for _, block in self.blocks():
            block.compile()

    def resize_head(self, num_classes: int, *, init: str = "normal") -> None:
        """Give the network a new last layer, with normal or zero weights."""
        old = self.head.logits.weight
        self.head.logits = nn.Linear(old.shape[1], num_classes, device=old.device, dtype=old.dtype)
        nn.init.zeros_(self.head.logits.bias)
        nn.init.normal_(self.head.logits.weight, std=_INIT_STD if init == "normal" else 0.0)
        self.config = dataclasses.replace(self.config, num_classes=num_classes)

    def _draws(self, images: Tensor, keys: Tensor | None) -> Tensor | None:
        if not self.training or self.config.stochastic_depth == 0.0:
            return None
        if keys is None:
            return torch.rand(images.shape[0], self._branches, device=images.device)
        return uniform(keys, self._branches)


def build_model(
    config: ModelConfig,
    *,
    norm: NormConfig | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> CoAtNet:
    """Build a network and initialise it: N(0, 0.02) for kernels and bias tables, zero biases.

    Args:
        config: which network.
        norm: batch norm's groups and constants.
        device: "meta" builds shapes only.
        seed: makes the weights a pure function of (config, seed) without touching torch's global state.
    """
    with torch.device(device or "cpu"):
        model = CoAtNet(config, norm=norm or NormConfig())
    if torch.device(device or "cpu").type != "meta":
        generator = torch.Generator(device=device or "cpu")
        generator.manual_seed(seed if seed is not None else torch.initial_seed() % (1 << 62))
        _initialise(model, generator)
    return model


@torch.no_grad()
def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | DepthwiseConv):
            module.weight.normal_(std=_INIT_STD, generator=generator)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()  # type: ignore[union-attr, operator]
        elif isinstance(module, RelativeBias):
            module.table.normal_(std=_INIT_STD, generator=generator)


def _norm_arguments(norm: NormConfig) -> dict:
    return {"group_images": norm.group_images, "momentum": norm.momentum, "eps": norm.eps}


def _norm_factory(config: ModelConfig, norm: NormConfig) -> NormFactory:
    if config.mbconv_norm == "layer":
        return partial(nn.LayerNorm, eps=_LAYER_NORM_EPS)
    return partial(GroupBatchNorm, **_norm_arguments(norm))


def _stages(plan: Architecture, config: ModelConfig, norm: NormFactory) -> dict[str, nn.ModuleList]:
    total = sum(stage.depth for stage in plan.stages)
    width, index, grid = plan.stem_width, 0, config.image_size // 2
    stages = {}
    for stage in plan.stages:
        blocks = nn.ModuleList()
        grid //= 2
        for run in stage.runs:
            for _ in range(run.depth):
                rate = config.stochastic_depth * index / total
                stride = 2 if not blocks else 1
                if run.kind == "mbconv":
                    place = plan.stride_place
                    block: nn.Module = MBConv(
                        width, run.width, stride=stride, stride_place=place, norm=norm, drop_rate=rate
                    )
                else:
                    block = TransformerBlock(
                        width,
                        run.width,
                        stride=stride,
                        head_size=plan.head_size,
                        grid=grid,
                        relative=config.relative_attention,
                        drop_rates=(rate, rate),
                    )
                blocks.append(block)
                width, index = run.width, index + 1
        stages[stage.name] = blocks
    return stages
