"""The root schema of a fine-tuning run; `coatnet finetune CONFIG key.sub=value…` fills it.

The defaults are the paper's fine-tuning recipe on ImageNet-1K (coatnet: Dai et al., arXiv 2106.04803, Table
10): AdamW at a constant 5e-5, weight decay 1e-8, clip 1.0, label smoothing 0.1, EMA 0.9999, the whole image
resized for evaluation. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coatnet.config.checks import above_zero, counted, one_of
from coatnet.model.config import ModelConfig, NormConfig
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import DataConfig

STAGES = ("S0", "S1", "S2", "S3", "S4")
FREEZABLE = (*STAGES, "dense")  # "dense" is the D→D layer before the logits


def _fine_tuning_augment() -> AugmentConfig:
    return AugmentConfig(image_size=384, evaluate_resize="whole")


@dataclass
class RunConfig:
    """Where the run lives.

    Attributes:
        directory: the same directory goes on where it was; another config there is refused.
    """

    directory: str = "runs/finetune"


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
class OptimizerConfig:
    """AdamW.

    Attributes:
        clip: bound of the gradient's global norm; 0 is off.
        layer_decay: learning rate of each block relative to the next one towards the head; 1 is off.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 1e-8
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip: float = 1.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        above_zero("learning_rate", self.learning_rate)
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay is {self.layer_decay}; allowed: above 0, up to 1 (off)")
        if self.weight_decay < 0 or self.clip < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, clip {self.clip}; allowed: 0 or more")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; allowed: two numbers from 0 to below 1")


@dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    shape: str = "constant"
    warmup: str = "0 steps"
    minimum: float = 0.0

    def __post_init__(self) -> None:
        one_of("shape", self.shape, ("constant", "cosine", "linear"))
        counted("warmup", self.warmup)


@dataclass
class LossConfig:
    """What is minimised.

    Attributes:
        class_weights: "none", or "balanced": samples / (classes · samples of the class).
    """

    name: str = "softmax"
    smoothing: float = 0.1
    class_weights: str = "none"

    def __post_init__(self) -> None:
        one_of("name", self.name, ("softmax", "sigmoid"))
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
        if self.global_batch < 1 or self.micro_batch < 1 or self.patience < 0:
            raise ValueError(
                f"global_batch is {self.global_batch}, micro_batch {self.micro_batch}, patience "
                f"{self.patience}; allowed: 1 or more, 1 or more, 0 or more"
            )


@dataclass
class EvaluateConfig:
    """When to evaluate, and in which batches (no result depends on `batch`)."""

    every: str = "1 epochs"
    batch: int = 64

    def __post_init__(self) -> None:
        counted("every", self.every)
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; allowed: 1 or more")


@dataclass
class SaveConfig:
    """When to save, beside the end and a stop; how many of the newest checkpoints stay."""

    every: str = "1 epochs"
    last: int = 2

    def __post_init__(self) -> None:
        counted("every", self.every)
        if self.last < 1:
            raise ValueError(f"last is {self.last}; allowed: 1 or more")


@dataclass
class LaunchConfig:
    """Ranks on this machine; null for one per GPU. Ignored under srun and torchrun."""

    ranks: int | None = None

    def __post_init__(self) -> None:
        if self.ranks is not None and self.ranks < 1:
            raise ValueError(f"ranks is {self.ranks}; allowed: 1 or more")


@dataclass
class FinetuneConfig:
    """A fine-tuning run.

    Attributes:
        init: a pretraining or fine-tuning run, a checkpoint or an exported directory; null is from scratch.
        weights: which of the checkpoint's weights: "auto" (EMA where there is one), "ema" or "raw".
        model: null takes the checkpoint's; given, it must agree with it. Needed where `init` is null.
        stochastic_depth: null keeps the model's.
        freeze: parts that do not learn, of S0 … S4 and dense; all six make a linear probe.
        ema: decay of the averaged weights, which are then the ones evaluated; 0 is off.
        precision: "fp32", or "bf16" (autocast).
        seeds: several make one run each, and a summary with mean and deviation; empty for `seed` alone.
    """

    init: str | None = None
    weights: str = "auto"
    seed: int = 0
    seeds: list[int] = field(default_factory=list)
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig | None = None
    norm: NormConfig = field(default_factory=NormConfig)
    stochastic_depth: float | None = None
    head: HeadConfig = field(default_factory=HeadConfig)
    freeze: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=_fine_tuning_augment)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ema: float = 0.9999
    precision: str = "fp32"
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        one_of("weights", self.weights, ("auto", "ema", "raw"))
        one_of("precision", self.precision, ("fp32", "bf16"))
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
