"""The sections of a config that pretraining and fine-tuning share; the defaults are pretraining's.

Knows no loop; imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coatnet.config import UserError
from coatnet.config.checks import (
    above_zero,
    at_least_one,
    at_least_zero,
    below_one,
    counted,
    duration,
    folder,
    multiple_of,
    no_url,
    one_of,
    up_to,
    within,
)

# Figures of an evaluation that are better the higher they are, by the labels of its corpus: one per image, or
# several. The first of them says which of two checkpoints is better.
FIGURES = {"single": ("top1", "top5"), "multi": ("map", "map_micro", "precision1")}
TRANSFER = "transfer_top1"
LOSS_NAMES = ("softmax", "sigmoid")
MOST_IMAGES = 1 << 24  # of a step
_MOST_RANKS = 1024
_LEAST_CLIP = 1e-6  # below, all gradients sink under `eps`, and nothing is learned


@dataclass
class RunConfig:
    """Where the run lives.

    Attributes:
        directory: the same directory goes on where it was; another config there is refused.
    """

    directory: str = "runs/pretrain"

    def __post_init__(self) -> None:
        folder("directory", self.directory, allowed="a folder")
        no_url("directory", self.directory)


@dataclass
class LossConfig:
    """What is minimised.

    Attributes:
        name: "softmax" for one label per image, "sigmoid" also for several.
        smoothing: share of the target that is spread over all classes; 0 is off.
        class_weights: "none", or "balanced": samples / (classes · samples of the class).
    """

    name: str = "softmax"
    smoothing: float = 0.1
    class_weights: str = "none"

    def __post_init__(self) -> None:
        one_of("name", self.name, LOSS_NAMES)
        below_one("smoothing", self.smoothing)
        one_of("class_weights", self.class_weights, ("none", "balanced"))


@dataclass
class OptimizerConfig:
    """AdamW. The paper prints no betas; these are the defaults of its lineage.

    Attributes:
        learning_rate: at its peak.
        weight_decay: not of biases, norms and bias tables.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        clip: bound of the gradient's global norm; 0 is off.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        up_to("learning_rate", self.learning_rate, most=1)
        within("eps", self.eps, least=1e-30, most=1)  # below it is 0 in fp32
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; allowed: two numbers from 0 to below 1")
        if not 0 <= self.weight_decay * self.learning_rate < 1:  # a step takes so much of a weight away
            raise ValueError(f"weight_decay is {self.weight_decay}; allowed: 0 to 1 / learning_rate")
        if not (self.clip == 0 or self.clip >= _LEAST_CLIP):
            raise ValueError(f"clip is {self.clip}; allowed: 0 (off), or from {_LEAST_CLIP} on")


@dataclass
class ScheduleConfig:
    """The learning rate over the run.

    Attributes:
        shape: "cosine", "linear" or "constant" after the warm-up.
        warmup: how long the rate rises linearly from 0, in epochs, steps or images; "0 steps" is off.
        minimum: where "cosine" and "linear" end.
    """

    shape: str = "cosine"
    warmup: str = "10000 steps"
    minimum: float = 1e-5

    def __post_init__(self) -> None:
        one_of("shape", self.shape, ("cosine", "linear", "constant"))
        counted("warmup", self.warmup, may_be_none=True)
        within("minimum", self.minimum, least=0, most=1)


@dataclass
class ZeroConfig:
    """How DeepSpeed shards the state of training.

    Attributes:
        stage: 0 keeps everything on every rank, 1 shards AdamW's state, 2 the gradients too, 3 the weights
            too. Stage 1 suffices for every CoAtNet on 80 GB.
        overlap_communication: reduce gradients while the backward pass still runs (stages 1 to 3; at
            1 not with precision "bf16"), an eighth of the model at a time. No GPU has run it, so it is off.
        bucket_elements: gradients are reduced in buckets of so many numbers, or of fewer.
        persist_elements: stage 3 keeps parameters of fewer numbers whole on every rank.
    """

    stage: int = 1
    overlap_communication: bool = False
    bucket_elements: int = 200_000_000
    persist_elements: int = 10_000

    def __post_init__(self) -> None:
        one_of("stage", self.stage, (0, 1, 2, 3))
        if self.bucket_elements < 2 or self.bucket_elements % 2:  # DeepSpeed aligns them so
            raise ValueError(f"bucket_elements is {self.bucket_elements}; allowed: even numbers from 2 on")
        at_least_zero("persist_elements", self.persist_elements)


@dataclass
class PhaseConfig:
    """One resolution of a progressive run.

    Attributes:
        image_size: side in pixels, a multiple of 32.
        share: of the duration, relative to the other phases' shares.
    """

    image_size: int = 224
    share: float = 1.0

    def __post_init__(self) -> None:
        multiple_of("image_size", self.image_size, 32)
        above_zero("share", self.share)


@dataclass
class TrainConfig:
    """How long, and in which batches.

    Attributes:
        duration: in epochs, steps or images, from the run's first start on.
        global_batch: images of a step, over all ranks.
        micro_batch: images per rank and backward pass; the rest of `global_batch / world size` is
            accumulated. Null takes all of it at once.
        phases: resolutions one after the other; empty for `augment.image_size` all along.
    """

    duration: str = "300 epochs"
    global_batch: int = 4096
    micro_batch: int | None = None
    phases: list[PhaseConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        counted("duration", self.duration)
        within("global_batch", self.global_batch, least=1, most=MOST_IMAGES)
        if self.micro_batch is not None:
            at_least_one("micro_batch", self.micro_batch)


@dataclass
class EvaluateConfig:
    """When to evaluate, and in which batches.

    Attributes:
        every: in epochs, steps or images; the end is evaluated in any case.
        batch: images at a time on each rank; no result depends on it.
    """

    every: str = "1 epochs"
    batch: int = 64

    def __post_init__(self) -> None:
        counted("every", self.every)
        within("batch", self.batch, least=1, most=65536)


@dataclass
class SaveConfig:
    """When to save, beside the end and a stop, and which checkpoints stay.

    Attributes:
        every: seconds, minutes or hours (by rank 0's clock), epochs, steps or images.
        last: so many of the newest stay.
        keep_every_steps: the first from each multiple of so many steps on stays for good; null for none.
        best: the one with the highest figure of this name is saved when it is evaluated, and stays: top1 or
            top5 (one label per image), map, map_micro or precision1 (several), transfer_top1; in pretraining
            also of the average (ema_top1 …); null for none.
    """

    every: str = "10 minutes"
    last: int = 3
    keep_every_steps: int | None = None
    best: str | None = None

    def __post_init__(self) -> None:
        duration("every", self.every)
        at_least_one("last", self.last)
        if self.keep_every_steps is not None:
            at_least_one("keep_every_steps", self.keep_every_steps)
        if self.best is not None:
            known = (*FIGURES["single"], *FIGURES["multi"], TRANSFER)
            one_of("best", self.best.removeprefix("ema_"), known)

    def check_best(
        self, label_kind: str | None, *, averaged: bool, transfer: bool, patience: int = 0
    ) -> None:
        """Check that evaluations have the figure: without, no checkpoint would ever be the best.

        Args:
            label_kind: of the corpus: "single", or "multi" for several labels per image; None without one.
            averaged: the moving average is judged beside the weights, by the figures that begin with ema_.
            transfer: to a second corpus, is judged too.
            patience: `train.patience`, which keeps the best by the decisive figure.

        Raises:
            UserError: they do not have it, or it is another one than patience goes by.
        """
        if patience and label_kind is None:
            raise UserError(f"train.patience is {patience}; allowed without data.evaluate: 0 (off)")
        if patience and label_kind and self.best not in (None, first := FIGURES[label_kind][0]):
            raise UserError(
                f"save.best is {self.best!r}; allowed with train.patience, which keeps the best by {first}: "
                f"null, {first}"
            )
        known = [*FIGURES[label_kind]] if label_kind else []
        known += [f"ema_{name}" for name in known if averaged] + [TRANSFER] * transfer
        if self.best is not None and self.best not in known:
            labels = {"multi": "several labels", "single": "one label"}.get(label_kind or "")
            data = f"with {labels} per image in data.evaluate" if labels else "without data.evaluate"
            known.append("null")
            raise UserError(f"save.best is {self.best!r}; allowed here, {data}: {', '.join(known)}")


@dataclass
class LaunchConfig:
    """How the ranks are started.

    Attributes:
        ranks: processes on this machine; null for one per GPU, or one without. Ignored under srun and
            torchrun.
        deterministic: on a GPU, let torch use only kernels that give the same bits every time, and refuse
            what has none. In "autocast" and "bf16" the network's own have them anyway; "fp32" needs it.
    """

    ranks: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.ranks is not None and not 1 <= self.ranks <= _MOST_RANKS:
            raise ValueError(f"ranks is {self.ranks}; allowed: 1 to {_MOST_RANKS} on one machine")
