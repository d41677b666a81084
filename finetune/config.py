"""The root schema of a fine-tuning run; `coatnet finetune CONFIG key.sub=value…` fills it.

The defaults are the paper's for ImageNet-1K (arXiv 2106.04803, Table 10): AdamW at a constant 5e-5, weight
decay 1e-8, clip 1.0, label smoothing 0.1, EMA 0.9999, whole images in evaluation. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from coatnet.config import config_digest
from coatnet.config.checks import at_least_zero, below_one, multiple_of, one_of, up_to
from coatnet.model.config import PARTS, ModelConfig, NormConfig
from coatnet.training.sections import (
    EvaluateConfig,
    LaunchConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    TrainConfig,
)
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import DataConfig
from finetune.choices import PRECISIONS, WEIGHTS


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
        up_to("layer_decay", self.layer_decay, most=1)


@dataclass
class FinetuneTrainConfig(TrainConfig):
    """How long, and in which batches.

    Attributes:
        patience: stop after so many evaluations at the last resolution without a better one; 0 is off.
    """

    duration: str = "30 epochs"
    global_batch: int = 512
    micro_batch: int | None = 32
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("patience", self.patience)


@dataclass
class FinetuneConfig:
    """A fine-tuning run.

    Attributes:
        init: a pretraining or fine-tuning run, a checkpoint or an exported directory; null is from scratch.
        weights: which of the checkpoint's weights: "auto" (EMA where there is one), "ema" or "raw".
        model: null takes the checkpoint's; given, it must agree with it. Needed where `init` is null.
        stochastic_depth: null keeps the model's.
        freeze: parts that do not learn, of S0 … S4 and dense; all six make a linear probe.
        zero: accelerate's DeepSpeed plug-in shards AdamW's state over the ranks (1) and gradients too (2).
        ema: decay of the averaged weights, which are then the ones evaluated; 0 is off.
        precision: "fp32", or "bf16" (autocast).
        seed: of the order of samples, augmentation, stochastic depth and the new head.
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
    augment: AugmentConfig = field(default_factory=partial(AugmentConfig, 384, evaluate_resize="whole"))
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=partial(ScheduleConfig, "constant", "0 steps", 0.0))
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    zero: int = 0
    ema: float = 0.9999
    precision: str = "fp32"
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    save: SaveConfig = field(default_factory=partial(SaveConfig, "1 epochs", 2))
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        at_least_zero("seed", self.seed)
        one_of("weights", self.weights, tuple(WEIGHTS))
        one_of("precision", self.precision, PRECISIONS)
        one_of("zero", self.zero, (0, 1, 2))
        below_one("ema", self.ema)
        below_one("stochastic_depth", self.stochastic_depth or 0.0)
        for part in self.freeze:
            one_of("freeze", part, PARTS)
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds is {self.seeds}; allowed: 0 or more, each once")
        if self.init is None and (self.model is None or self.head.keep_rows != "none"):
            raise ValueError("init is null; allowed: a checkpoint, or a model and head.keep_rows none")
        group, batch = self.norm.group_images, self.train.micro_batch
        if group is not None and (batch or group) % group:
            raise ValueError(
                f"train.micro_batch is {batch}; allowed: multiples of norm.group_images, {group}"
            )
        multiple_of("augment.image_size", self.augment.image_size, 32)

    def run_digest(self) -> str:
        """Return what tells runs apart: the config without what changes where and how, but not the result."""
        placed = replace(self, data=self.data.without_places())
        return config_digest(placed, without=("launch", "run", "save", "seeds"))
