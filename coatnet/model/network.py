"""CoAtNet: stem, stages, head; built from the family's data. Knows nothing of data, ranks or DeepSpeed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coatnet.config import UserError
from coatnet.model.blocks import Conv, MBConv, Style, TransformerBlock
from coatnet.model.config import ModelConfig, NormConfig, architecture
from coatnet.model.initial import INIT_STD, Placed, materialise
from coatnet.model.norm import GroupBatchNorm, noted_already
from coatnet.model.stochastic_depth import keep_scales, uniform

Block = MBConv | TransformerBlock
_TOTAL_STRIDE = 32
_RECOMPILE_LIMIT = 64
# Inductor keeps a map in memory once 30 operators or four reads made it, in fp32 where they compute so: the
# backward pass through norm and GELU wrote and read five of them. Computing them again moves some 40 % less
# (benchmarks/gpu_traffic.py; not timed on a GPU yet). For a CPU the code would take minutes to compile.
RECOMPUTING = {"realize_opcount_threshold": 100, "realize_reads_threshold": 8}
# Left alone, inductor times several forms of a sum on the card, so that another node, or a run's next life,
# may add up in another order. benchmarks/gpu_lease.py asks a GPU what that would win ("timed").
GPU_OPTIONS: dict[str, int | bool] = {**RECOMPUTING, "deterministic": True}


class Stem(nn.Module):
    """S0: two 3×3 convolutions, the first of stride 2. Shape: (B, H, W, 3) → (B, H/2, W/2, C)."""

    def __init__(self, width: int, *, norm: nn.Module, style: Style) -> None:
        super().__init__()
        self.style = style
        bias, padding = style.config.stem_bias, style.config.padding
        self.conv1 = Conv(3, width, stride=2, padding=padding, bias=bias)
        self.norm = norm
        self.conv2 = Conv(width, width, stride=1, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.style.norm_activate(self.norm, self.conv1(x)))


class PatchStem(nn.Module):
    """ViT-REL's stem: a projection of patches. Shape: (B, H, W, 3) → (B, H/patch, W/patch, C)."""

    def __init__(self, width: int, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(3 * patch_size**2, width)

    def forward(self, x: Tensor) -> Tensor:
        size = self.patch_size
        patches = x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
        return self.project(patches.flatten(3))


class Head(nn.Module):
    """Global mean, norm, dense, tanh, logits. Shape: (B, H, W, C) → (B, classes)."""

    def __init__(self, width: int, *, num_classes: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.dense = nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return what enters the last layer. Shape: (B, C)."""
        return torch.tanh(self.dense(self.norm(x.mean(dim=(1, 2)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


class CoAtNet(nn.Module):
    """The network. `stages` maps S1…S4 to lists of blocks.

    Attributes:
        watch: called with a stage's name and the output of each of its blocks, where it is not None.

    Shape: images (B, 3, H, W), any memory format, H and W divisible by 32 → logits (B, classes).
    """

    def __init__(self, config: ModelConfig, *, norm: NormConfig) -> None:
        super().__init__()
        self.config = config
        plan = architecture(config)
        batch_norm = partial(
            GroupBatchNorm,
            group_images=norm.group_images,
            momentum=norm.momentum,
            eps=config.batch_norm_eps,
            sync=norm.sync,
        )
        layer_norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        style = Style(config, plan, norm=batch_norm if config.mbconv_norm == "batch" else layer_norm)
        # The stem keeps batch norm in the LN ablation, which the paper words for MBConv only.
        self.stem: Stem | PatchStem = (
            PatchStem(plan.stem_width, patch_size=plan.patch_size)
            if plan.patch_size is not None
            else Stem(plan.stem_width, norm=batch_norm(plan.stem_width), style=style)
        )
        self.stages = nn.ModuleDict(_stages(style))
        self.head = Head(plan.width, num_classes=config.num_classes, norm=layer_norm(plan.width))
        self.watch: Callable[[str, Tensor], None] | None = None
        self._checkpointed: frozenset[str] = frozenset()
        self._frozen: list[nn.Module] = []
        self._drop_rates = self._make_drop_rates()

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
        scales = self._scales(images, sample_keys)
        x = self.stem(images.permute(0, 2, 3, 1))
        branch = 0
        for stage, block in self.blocks():
            own = None if scales is None else scales[:, branch : branch + block.branches]
            branch += block.branches
            if stage in self._checkpointed and torch.is_grad_enabled():
                x = checkpoint(block, x, own, use_reentrant=False, context_fn=partial(_recomputing, block))
            else:
                x = block(x, own)
            if self.watch is not None:
                self.watch(stage, x)
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
        assert set(stages) <= set(self.stages), stages
        self._checkpointed = frozenset(stages)

    def fuse_mbconv(self) -> None:
        """Train MBConv by the GPU's kernels for its middle: the same mathematics, fewer passes."""
        for _, block in self.blocks():
            if isinstance(block, MBConv):
                block.fuse()

    def compile_blocks(self) -> None:
        """Compile every block in place; blocks of one shape share the compiled code."""
        # Six shapes of MBConv, in training and in evaluation: more than dynamo's default of 8 variants, after
        # which it would go on uncompiled. Dynamic shapes would come from one block to the next, slow and
        # refused by inductor (its strides of 1×1 maps become symbols that it cannot order).
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
        options = GPU_OPTIONS if torch.cuda.is_available() else None
        for part in (self.stem, *(block for _, block in self.blocks()), self.head):
            part.compile(dynamic=False, options=options)

    def freeze(self, parts: Sequence[str]) -> None:
        """Stop parts from learning, of `PARTS`: their running statistics stay, and no branch is dropped."""
        for part in parts:
            if part == "S0":
                self._frozen.append(self.stem)
            elif part == "dense":
                self._frozen += [self.head.norm, self.head.dense]
            else:
                self._frozen.append(self.stages[part])
        for module in self._frozen:
            module.requires_grad_(False)
        stages = [stage for stage, block in self.blocks() for _ in range(block.branches)]
        rates = zip(self._drop_rates, stages, strict=True)
        self._drop_rates = tuple(0.0 if stage in parts else rate for rate, stage in rates)

    def train(self, mode: bool = True) -> CoAtNet:
        """Set the mode of everything that is not frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @torch.no_grad()
    def resize_head(self, num_classes: int, *, init: str, seed: int) -> None:
        """Give the network a new last layer, with normal or zero weights that depend on the seed alone."""
        old = self.head.logits.weight
        self.head.logits = nn.Linear(old.shape[1], num_classes, device=old.device, dtype=old.dtype)
        for parameter in self.head.logits.parameters():
            parameter.zero_()
        if init == "normal":
            generator = torch.Generator(device=old.device).manual_seed(seed)
            self.head.logits.weight.normal_(std=INIT_STD, generator=generator)
        self.config = dataclasses.replace(self.config, num_classes=num_classes)

    def _make_drop_rates(self) -> tuple[float, ...]:
        """Drop rate of every branch: 0 at first, linear in the block's index (as google-research/maxvit)."""
        blocks = [block for _, block in self.blocks()]
        rate = self.config.stochastic_depth
        return tuple(
            rate * index / len(blocks) for index, block in enumerate(blocks) for _ in range(block.branches)
        )

    def _scales(self, images: Tensor, keys: Tensor | None) -> Tensor | None:
        """Draw stochastic depth for all branches at once, so that blocks of one shape stay alike."""
        if not self.training or self.config.stochastic_depth == 0.0:
            return None
        branches = len(self._drop_rates)
        if keys is None:
            draws = torch.rand(images.shape[0], branches, device=images.device)
        else:
            draws = uniform(keys, branches)
        return keep_scales(draws, self._drop_rates)


def _recomputing(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return in what checkpointing computes a block, and in what once more."""
    return nullcontext(), noted_already(block)


def build_model(
    config: ModelConfig,
    *,
    norm: NormConfig | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    placed: Placed | None = None,
) -> CoAtNet:
    """Build a network and initialise it: kernels by `config.initialization`, N(0, 0.02) for bias tables.

    Args:
        config: which network.
        norm: batch norm's groups and constants.
        device: "meta" builds shapes only.
        seed: makes the weights a pure function of (config, seed) without touching torch's global state.
        placed: called with each module when its weights are there, and before those of the next one are.
    """
    place = torch.device(device or "cpu")
    with torch.device("meta"):
        model = CoAtNet(config, norm=norm or NormConfig())
    if place.type != "meta":
        generator = torch.Generator(device=place)
        generator.manual_seed(seed if seed is not None else torch.initial_seed() % (1 << 62))
        by_fan_in = config.initialization == "fan_in"
        materialise(model, device=place, generator=generator, by_fan_in=by_fan_in, placed=placed)
    return model


def _stages(style: Style) -> dict[str, nn.ModuleList]:
    width, grid = style.plan.stem_width, style.config.image_size // style.plan.stem_stride
    stages = {}
    for stage in style.plan.stages:
        blocks = nn.ModuleList()
        grid //= stage.stride
        for run in stage.runs:
            for _ in range(run.depth):
                stride = 1 if blocks else stage.stride
                if run.kind == "mbconv":
                    block: Block = MBConv(width, run.width, stride=stride, style=style)
                else:
                    block = TransformerBlock(width, run.width, stride=stride, style=style, grid=grid)
                blocks.append(block)
                width = run.width
        stages[stage.name] = blocks
    return stages
