"""The root schema of a fine-tuning run; `coatnet finetune CONFIG key.sub=value…` fills it.

The defaults are the paper's fine-tuning recipe on ImageNet-1K (coatnet: Dai et al., arXiv 2106.04803, Table
10): AdamW at a constant 5e-5, weight decay 1e-8, clip 1.0, label smoothing 0.1, EMA 0.9999, the whole image
resized for evaluation. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from coatnet.config.checks import above_zero, at_least_one, counted, one_of
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.training.sections import (
    EvaluateConfig,
    LaunchConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
)
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import DataConfig

FREEZABLE = ("S0", "S1", "S2", "S3", "S4", "dense")  # "dense" is the D→D layer before the logits


@dataclass
class HeadConfig:
    """The new classifier.

    Attributes:
        init: "zero", or "normal" (standard deviation 0.02, as in pretraining).
        keep_rows: "none", or "matching": rows of classes that the checkpoint knows by the same name or
            WordNet id (n01440764) are kept, as from ImageNet-21K to 1K.
    """

    init: str = "zero"
    keep_rows: str = "none"

    def __post_init__(self) -> None:
        one_of("init", self.init, ("zero", "normal"))
        one_of("keep_rows", self.keep_rows, ("none", "matching"))


@dataclass
class FinetuneOptimizerConfig(OptimizerConfig):
    """AdamW.

    Attributes:
        layer_decay: learning rate of each block relative to the next one towards the head; 1 is off.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 1e-8
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay is {self.layer_decay}; allowed: above 0, up to 1 (off)")


@dataclass
class FinetuneLossConfig(LossConfig):
    """What is minimised.

    Attributes:
        class_weights: "none", or "balanced": samples / (classes · samples of the class).
    """

    class_weights: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("class_weights", self.class_weights, ("none", "balanced"))


@dataclass
class PhaseConfig:
    """One resolution of a progressive run: `image_size` for `share` of the duration."""

    image_size: int = 224
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size is {self.image_size}; allowed: multiples of 32")
        above_zero("share", self.share)


@dataclass
class TrainConfig:
    """How long, and in which batches.

    Attributes:
        micro_batch: images per rank and backward pass, `global_batch / world size` being accumulated.
        phases: resolutions one after the other; empty for `augment.image_size` all along.
        patience: stop after so many evaluations without a better top-1; 0 is off.
    """

    duration: str = "30 epochs"
    global_batch: int = 512
    micro_batch: int = 32
    phases: list[PhaseConfig] = field(default_factory=list)
    patience: int = 0

    def __post_init__(self) -> None:
        counted("duration", self.duration)
        at_least_one("global_batch", self.global_batch)
        at_least_one("micro_batch", self.micro_batch)
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; allowed: 0 or more")


@dataclass
class FinetuneConfig:
    """A fine-tuning run.

    Attributes:
        init: a pretraining or fine-tuning run, a checkpoint or an exported directory; null is from scratch.
        weights: which of the checkpoint's weights: "auto" (EMA where there is one), "ema" or "raw".
        model: null takes the checkpoint's; given, it must agree with it. Needed where `init` is null.
        stochastic_depth: null keeps the model's.
        freeze: parts that do not learn, of S0 … S4 and dense; all six make a linear probe.
        zero: stage of accelerate's DeepSpeed plug-in for models that need it: 1 shards AdamW's state over the
            ranks, 2 the gradients too; 0 is plain data parallelism.
        ema: decay of the averaged weights, which are then the ones evaluated; 0 is off.
        precision: "fp32", or "bf16" (autocast).
        seeds: several make one run each, and a summary with mean and deviation; empty for `seed` alone.
    """

    init: str | None = None
    weights: str = "auto"
    seed: int = 0
    seeds: list[int] = field(default_factory=list)
    run: RunConfig = field(default_factory=partial(RunConfig, "runs/finetune"))
    model: ModelConfig | None = None
    norm: NormConfig = field(default_factory=NormConfig)
    stochastic_depth: float | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    freeze: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(
        default_factory=partial(AugmentConfig, image_size=384, evaluate_resize="whole")
    )
    loss: FinetuneLossConfig = field(default_factory=FinetuneLossConfig)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=partial(ScheduleConfig, "constant", "0 steps", 0.0))
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: int = 0
    ema: float = 0.9999
    precision: str = "fp32"
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    save: SaveConfig = field(default_factory=partial(SaveConfig, "1 epochs", 2))
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        one_of("weights", self.weights, ("auto", "ema", "raw"))
        one_of("precision", self.precision, ("fp32", "bf16"))
        if self.zero not in (0, 1, 2):
            raise ValueError(f"zero is {self.zero}; allowed: 0, 1, 2")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema is {self.ema}; allowed: from 0 (off) to below 1")
        for part in self.freeze:
            one_of("freeze", part, FREEZABLE)
        if self.init is None and self.model is None:
            raise ValueError("init is null and model is not given; allowed: a checkpoint, or a model")
        group = self.norm.group_images
        if group is not None and self.train.micro_batch % group:
            raise ValueError(
                f"train.micro_batch is {self.train.micro_batch}; allowed with norm.group_images {group}: "
                f"multiples of {group}"
            )
        if self.augment.image_size % 32:
            raise ValueError(f"augment.image_size is {self.augment.image_size}; allowed: multiples of 32")
