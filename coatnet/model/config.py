"""What a config may say of the model, and the architecture that follows. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from coatnet.config.checks import at_least_one, below_one, multiple_of, one_of, up_to, within
from coatnet.model.family import FAMILY, Architecture, Run, Stage

PARTS = ("S0", "S1", "S2", "S3", "S4", "dense")  # what can be frozen; "dense": the layer before the logits
_LETTERS = {"C": "mbconv", "T": "transformer"}
_CHOICES = {
    "stride_place": ("expand", "depthwise"),
    "mbconv_norm": ("batch", "layer"),
    "pooling": ("max", "average"),
    "padding": ("same", "symmetric"),
    "gelu": ("tanh", "exact"),
    "initialization": ("paper", "fan_in"),
}


@dataclass
class ModelConfig:
    """A family member and what is changed in it. From `pooling` on the defaults are the paper's constants;
    weights of timm's models need others.

    Attributes:
        name: a member, coatnet_0 … coatnet_7, coatnet_6_table12, vit_rel; with _dconv its DConv variant.
        num_classes: size of the head; a training run takes it from the data.
        image_size: side in pixels that fixes the grid of the relative-bias tables; any multiple of 32 can be
            fed later on. A training run takes it from `augment.image_size`.
        stochastic_depth: probability that a block at the end is skipped; at the start it is 0. 0 is off.
        relative_attention: whether attention has the relative bias.
        head_size: channels of an attention head; null for the family's (32; 64 in coatnet_5, 128 in 6 and 7).
        stride_place: which layer of a down-sampling MBConv strides, "expand" or "depthwise"; null for the
            family's.
        mbconv_norm: "batch" or "layer", in MBConv blocks.
        layout: kinds of S1 to S4, four of C (convolution) and T (transformer) as in "C-C-T-T"; null for the
            family's.
        depths: blocks of each stage, the stem's first (which is not read); null for the family's.
        widths: channels of each stage, the stem's first; null for the family's.
        initialization: "paper" draws kernels with deviation 0.02, "fan_in" with 1/√fan-in: at a miniature's
            widths 0.02 is far too small, and the first epochs do little but grow the weights.
        pooling: "max" or "average", where a block goes to a coarser grid.
        padding: of strided convolutions: "same" as in TensorFlow, or "symmetric" as in timm.
        gelu: "tanh" (its approximation) or "exact".
        stem_bias: whether the stem's convolutions have a bias.
        batch_norm_eps: added to the variance.
        layer_norm_eps: the same of layer norm.
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
    initialization: str = "paper"
    pooling: str = "max"
    padding: str = "same"
    gelu: str = "tanh"
    stem_bias: bool = True
    batch_norm_eps: float = 1e-3
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        base = self.name.removesuffix("_dconv")
        if base not in FAMILY:
            # timm's names go on behind ours (coatnet_0_224), and all of ours are equally similar to difflib.
            longer = [known for known in FAMILY if self.name.startswith(known)]
            near = longer[-1:] or difflib.get_close_matches(self.name, FAMILY, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(FAMILY)}"
            raise ValueError(f"name is {self.name!r}; {hint}")
        multiple_of("image_size", self.image_size, 32)
        below_one("stochastic_depth", self.stochastic_depth)
        at_least_one("num_classes", self.num_classes)
        if self.head_size is not None:
            at_least_one("head_size", self.head_size)
        for key in ("batch_norm_eps", "layer_norm_eps"):
            within(key, getattr(self, key), least=1e-12, most=1)
        for key, allowed in _CHOICES.items():
            if key != "stride_place" or self.stride_place is not None:
                one_of(key, getattr(self, key), allowed)
        expected = 1 + len(FAMILY[base].stages)
        for key, values in (("depths", self.depths), ("widths", self.widths)):
            if values is not None and (len(values) != expected or min(values) < 1):
                raise ValueError(f"{key} is {values}; expected {expected} positive numbers, the stem's first")
        letters = None if self.layout is None else self.layout.split("-")
        if letters is not None and (len(letters) != 4 or not _LETTERS.keys() >= set(letters)):
            raise ValueError(f"layout is {self.layout!r}; expected four of C and T, for example C-C-T-T")
        architecture(self)


@dataclass
class NormConfig:
    """Batch norm's statistics.

    Attributes:
        group_images: over so many consecutive images of the order; null for the micro-batch of the run's
            first start, which then holds for the whole run.
        sync: "none", or over the groups of all ranks of a "node", or of "all" ranks.
        momentum: share of a step's statistics in the running ones.
    """

    group_images: int | None = None
    sync: str = "none"
    momentum: float = 0.01

    def __post_init__(self) -> None:
        if self.group_images is not None:
            at_least_one("group_images", self.group_images)
        one_of("sync", self.sync, ("none", "node", "all"))
        up_to("momentum", self.momentum, most=1)


def architecture(config: ModelConfig) -> Architecture:
    """Return the architecture that a config describes.

    Raises:
        ValueError: depths and widths given for a stage of two kinds, or a head size that does not divide.
    """
    base = FAMILY[config.name.removesuffix("_dconv")]
    place = config.stride_place or ("depthwise" if config.name.endswith("_dconv") else base.stride_place)
    kinds = [_LETTERS[letter] for letter in config.layout.split("-")] if config.layout else None
    if kinds is not None and len(kinds) != len(base.stages):
        raise ValueError(f"layout is {config.layout!r}; {base.name} has {len(base.stages)} stage")
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


def stage_names(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of a model's stages; ViT-REL has but one."""
    return tuple(stage.name for stage in architecture(config).stages)


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
    return dataclasses.replace(stage, runs=(Run(kind, depth, width),))
