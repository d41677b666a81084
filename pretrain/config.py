"""The root schema of a pretraining run; `coatnet pretrain CONFIG key.sub=value…` fills it.

The defaults are the paper's ImageNet-1K recipe (Dai et al., arXiv 2106.04803, Table 10). Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from coatnet.config import config_digest
from coatnet.config.checks import at_least_zero, below_one, multiple_of, one_of
from coatnet.config.overlap import can_overlap
from coatnet.model.config import ModelConfig, NormConfig, stage_names
from coatnet.training.sections import (
    LaunchConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    ZeroConfig,
)
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import DataConfig
from pretrain.sections import (
    GuardConfig,
    PretrainEvaluateConfig,
    PretrainTrainConfig,
    ProfileConfig,
    TuneConfig,
)

# Sections that change where, when and how fast, but not what comes out: they may change under a run.
_NOT_THE_RESULT = ("run", "launch", "save", "profile", "evaluate", "guard", "compile", "tune", "zero")


@dataclass
class PretrainConfig:
    """A pretraining run.

    Attributes:
        seed: of the order of samples, augmentation, stochastic depth and the first weights.
        model: a family member and what is changed in it; `num_classes` and `image_size` follow the data and
            `augment.image_size`.
        precision: "fp32"; "autocast" computes in bf16 with fp32 weights; "bf16" keeps weights and gradients
            in bf16 as well, with fp32 master weights; gradients are summed in fp32. Batch norm is in fp32 in
            all of them.
        ema: decay of a moving average of the weights, also evaluated and saved; 0 is off.
        compile: compile the model's blocks with torch.compile; at stage 3 graphs break around every layer.
    """

    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: str = "fp32"
    ema: float = 0.0
    compile: bool = False
    evaluate: PretrainEvaluateConfig = field(default_factory=PretrainEvaluateConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        at_least_zero("seed", self.seed)
        one_of("precision", self.precision, ("fp32", "autocast", "bf16"))
        below_one("ema", self.ema)
        if not self.data.train:
            raise ValueError("data.train is empty; give data.train=SHARDS")
        multiple_of("augment.image_size", self.augment.image_size, 32)
        for stage in self.train.activation_checkpointing:
            one_of("train.activation_checkpointing", stage, stage_names(self.model))
        possible = can_overlap(zero_stage=self.zero.stage, precision=self.precision)
        if self.zero.overlap_communication and not possible:
            at = f"at zero.stage {self.zero.stage} with precision {self.precision}"
            raise ValueError(f"zero.overlap_communication is true; allowed {at}: false")
        if self.train.batch_changes and self.data.tail != "continue":
            raise ValueError(f"data.tail is {self.data.tail!r} with train.batch_changes; allowed: continue")

    def run_digest(self) -> str:
        """Return what tells runs apart: the config without what may change under a run.

        Besides whole sections these are the micro-batch (batch norm's groups are settled by the first start),
        how data are read, and where they lie.
        """
        usual = DataConfig()
        data = replace(
            self.data.without_places(),
            evaluate=None,
            threads=usual.threads,
            prefetch=usual.prefetch,
            bad_sample_budget=usual.bad_sample_budget,
            cache=usual.cache,
        )
        train = replace(self.train, micro_batch=None, activation_checkpointing=[])
        return config_digest(replace(self, data=data, train=train), without=_NOT_THE_RESULT)
