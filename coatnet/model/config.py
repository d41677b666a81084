"""What a config may say of the model, and the architecture that follows. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from coatnet.model.family import FAMILY, Architecture, Run, Stage

_LETTERS = {"C": "mbconv", "T": "transformer"}
_STRIDE_PLACES = ("expand", "depthwise")
_NORMS = ("batch", "layer")
_SYNC = ("none", "node", "all")


@dataclass
class ModelConfig:
    """A family member and what is changed in it.

    `depths` and `widths` have five entries, stem first; `layout` is four letters, "C-C-T-T".
    `image_size` fixes the grid of the relative-bias tables; any multiple of 32 can be fed later on.
    """

    name: str = "coatnet_0"
    num_classes: int = 1000
    image_size: int = 224
    stochastic_depth: float = 0.0
    relative_attention: bool = True
    head_size: int | None = None
    stride_place: str | None = None
    mbconv_norm: str = "batch"
    layout: str | None = None
    depths: list[int] | None = None
    widths: list[int] | None = None

    def __post_init__(self) -> None:
        base = self.name.removesuffix("_dconv")
        if base not in FAMILY:
            near = difflib.get_close_matches(self.name, FAMILY, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(FAMILY)}"
            raise ValueError(f"name is {self.name!r}; {hint}")
        if self.image_size % 32 or self.image_size <= 0:
            raise ValueError(f"image_size is {self.image_size}; allowed: multiples of 32")
        if not 0.0 <= self.stochastic_depth < 1.0:
            raise ValueError(f"stochastic_depth is {self.stochastic_depth}; allowed: 0 up to below 1")
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; allowed: 1 and more")
        if self.stride_place not in (None, *_STRIDE_PLACES):
            raise ValueError(f"stride_place is {self.stride_place!r}; allowed: {', '.join(_STRIDE_PLACES)}")
        if self.mbconv_norm not in _NORMS:
            raise ValueError(f"mbconv_norm is {self.mbconv_norm!r}; allowed: {', '.join(_NORMS)}")
        for key, values in (("depths", self.depths), ("widths", self.widths)):
            if values is not None and (len(values) != 5 or min(values) < 1):
                raise ValueError(f"{key} is {values}; expected five positive numbers, the stem's first")
        if self.layout is not None and [one for one in self.layout.split("-") if one not in _LETTERS]:
            raise ValueError(f"layout is {self.layout!r}; expected C and T, for example C-C-T-T")
        architecture(self)


@dataclass
class NormConfig:
    """Batch norm's statistics: over `group_images` consecutive images (None: the whole micro-batch).

    `sync` widens the statistics to all ranks of a node or of the job.
    """

    group_images: int | None = None
    sync: str = "none"
    momentum: float = 0.01
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.group_images is not None and self.group_images < 1:
            raise ValueError(f"group_images is {self.group_images}; allowed: 1 and more")
        if self.sync not in _SYNC:
            raise ValueError(f"sync is {self.sync!r}; allowed: {', '.join(_SYNC)}")


def architecture(config: ModelConfig) -> Architecture:
    """Return the architecture that a config describes.

    Raises:
        ValueError: depths and widths given for a stage of two kinds, or a head size that does not divide.
    """
    base = FAMILY[config.name.removesuffix("_dconv")]
    place = config.stride_place or ("depthwise" if config.name.endswith("_dconv") else base.stride_place)
    kinds = [_LETTERS[letter] for letter in config.layout.split("-")] if config.layout else None
    stages = tuple(
        _changed(stage, number, kinds=kinds, depths=config.depths, widths=config.widths)
        for number, stage in enumerate(base.stages)
    )
    built = dataclasses.replace(
        base,
        stages=stages,
        stem_width=config.widths[0] if config.widths else base.stem_width,
        head_size=config.head_size or base.head_size,
        stride_place=place,
    )
    for stage in built.stages:
        for run in stage.runs:
            if run.kind == "transformer" and run.width % built.head_size:
                raise ValueError(
                    f"{stage.name}: head_size {built.head_size} does not divide width {run.width}"
                )
    return built


def _changed(
    stage: Stage, number: int, *, kinds: list[str] | None, depths: list[int] | None, widths: list[int] | None
) -> Stage:
    if kinds is None and depths is None and widths is None:
        return stage
    if len(stage.runs) > 1:
        raise ValueError(f"{stage.name} mixes kinds; layout, depths and widths cannot change this model")
    run = stage.runs[0]
    kind = kinds[number] if kinds else run.kind
    depth = depths[number + 1] if depths else run.depth
    width = widths[number + 1] if widths else run.width
    return Stage(stage.name, (Run(kind, depth, width),))
