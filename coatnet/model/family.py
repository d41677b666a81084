"""The family as data: every CoAtNet is a row of one table. Imports no torch.

Source: Dai et al., "CoAtNet", arXiv 2106.04803 v2, Tables 3 and 12.
"""

from __future__ import annotations

from dataclasses import dataclass

KERNEL_SIZE = 3
EXPANSION = 4
SE_RATIO = 0.25


@dataclass(frozen=True)
class Run:
    """Consecutive blocks of one kind and width: "mbconv" (C) or "transformer" (T)."""

    kind: str
    depth: int
    width: int


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution; the first block divides the resolution by the stride."""

    name: str
    runs: tuple[Run, ...]
    stride: int = 2

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(run.depth for run in self.runs)

    @property
    def width(self) -> int:
        """Channels that leave the stage."""
        return self.runs[-1].width


@dataclass(frozen=True)
class Architecture:
    """A stem and stages. The stem is two convolutions at half resolution, or one patch projection."""

    name: str
    stem_width: int
    stages: tuple[Stage, ...]
    head_size: int = 32
    stride_place: str = "expand"
    patch_size: int | None = None

    @property
    def stem_stride(self) -> int:
        """By how much the stem divides the resolution."""
        return self.patch_size or 2

    @property
    def width(self) -> int:
        """Channels that enter the head."""
        return self.stages[-1].width


def _conv(depth: int, width: int) -> Run:
    return Run("mbconv", depth, width)


def _attention(depth: int, width: int) -> Run:
    return Run("transformer", depth, width)


def _row(name: str, stem: int, *stages: Run | tuple[Run, ...], head_size: int = 32) -> Architecture:
    built = tuple(
        Stage(f"S{number}", runs if isinstance(runs, tuple) else (runs,))
        for number, runs in enumerate(stages, 1)
    )
    return Architecture(name, stem, built, head_size)


# Table 12 prints an S4 width of 2048 for CoAtNet-6: 1.348 B parameters; 3072 gives the printed 1.47 B.
# fmt: off
_ROWS = (
    _row("coatnet_0", 64, _conv(2, 96), _conv(3, 192), _attention(5, 384), _attention(2, 768)),
    _row("coatnet_1", 64, _conv(2, 96), _conv(6, 192), _attention(14, 384), _attention(2, 768)),
    _row("coatnet_2", 128, _conv(2, 128), _conv(6, 256), _attention(14, 512), _attention(2, 1024)),
    _row("coatnet_3", 192, _conv(2, 192), _conv(6, 384), _attention(14, 768), _attention(2, 1536)),
    _row("coatnet_4", 192, _conv(2, 192), _conv(12, 384), _attention(28, 768), _attention(2, 1536)),
    _row("coatnet_5", 192, _conv(2, 256), _conv(12, 512), _attention(28, 1280), _attention(2, 2048),
         head_size=64),
    _row("coatnet_6", 192, _conv(2, 192), _conv(4, 384), (_conv(8, 768), _attention(42, 1536)),
         _attention(2, 3072), head_size=128),
    _row("coatnet_6_table12", 192, _conv(2, 192), _conv(4, 384), (_conv(8, 768), _attention(42, 1536)),
         _attention(2, 2048), head_size=128),
    _row("coatnet_7", 192, _conv(2, 256), _conv(4, 512), (_conv(8, 1024), _attention(42, 2048)),
         _attention(2, 3072), head_size=128),
)
# fmt: on
# The layout experiment's fifth model: one resolution behind a stride-16 stem, CoAtNet-2's size (Section 3.1).
_VIT_REL = Architecture(
    "vit_rel", 640, (Stage("S3", (_attention(15, 640),), stride=1),), head_size=32, patch_size=16
)
FAMILY = {row.name: row for row in (*_ROWS, _VIT_REL)}
