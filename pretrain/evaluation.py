"""Evaluation during training: every image once over all ranks, of the weights and of their average."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from coatnet.runtime.on_device import on_device
from coatnet.runtime.ranks import Ranks
from coatnet.training.losses import log_odds, make_loss
from coatnet.training.metrics import MultiLabelMetrics, SingleLabelMetrics
from coatnet.training.way_out import WayOut
from data_pipeline.batch import Batch
from data_pipeline.device import normalise
from data_pipeline.evaluate_loader import EvaluateLoader
from data_pipeline.record import SampleSource
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Engine

_MOST_CONFUSION_CLASSES = 1000


@dataclass
class Findings:
    """What an evaluation found.

    Attributes:
        figures: by name.
        bad: this rank's samples that could not be read.
        confusion: (label, first guess) counts; None where there are too many classes, or several labels.
    """

    figures: dict[str, float]
    bad: list[dict[str, Any]]
    confusion: Tensor | None = None


class Evaluator:
    """Measures a corpus with the engine's weights."""

    def __init__(
        self, corpus: SampleSource, config: PretrainConfig, *, ranks: Ranks, way_out: WayOut
    ) -> None:
        self._corpus, self._config, self._ranks, self._way_out = corpus, config, ranks, way_out
        self._loss = make_loss(config.loss.name, per_sample=True)

    def measure(self, engine: Engine) -> Findings:
        """Measure the weights and, where there is one, their average, whose figures begin with `ema_`.

        Raises:
            Stopped: all ranks have taken the way out.
        """
        found = self._measure(engine, ema=False)
        if engine.state.ema is None:
            return found
        averaged = self._measure(engine, ema=True)
        figures = {f"ema_{name}": value for name, value in averaged.figures.items()}
        return replace(averaged, figures=found.figures | figures)

    def _measure(self, engine: Engine, *, ema: bool) -> Findings:
        metrics, bad = self._metrics(), []
        with engine.evaluating(ema=ema) as forward:
            for pixels, batch in equal_batches(
                self._corpus, self._config, ranks=self._ranks, way_out=self._way_out
            ):
                bad += [sample.to_dict() for sample in batch.bad]
                logits = forward(pixels)[: len(batch)]
                if len(batch):
                    targets = on_device(batch.labels, self._ranks.device)
                    multi = isinstance(metrics, MultiLabelMetrics)
                    scores = log_odds(logits.float(), self._config.loss.name) if multi else logits
                    metrics.update(scores, targets, losses=self._loss(logits, targets))
        self._way_out.agree()
        metrics.reduce(self._ranks.all_reduce_sum)
        if isinstance(metrics, SingleLabelMetrics) and len(metrics.confusion):
            return Findings(metrics.result(), bad, metrics.confusion.cpu())
        return Findings(metrics.result(), bad)

    def _metrics(self) -> SingleLabelMetrics | MultiLabelMetrics:
        classes, device = len(self._corpus.classes), self._ranks.device
        if self._corpus.label_kind == "multi":
            return MultiLabelMetrics(classes, device=device)
        return SingleLabelMetrics(classes, device=device, confusion=classes <= _MOST_CONFUSION_CLASSES)


def equal_batches(
    corpus: SampleSource, config: PretrainConfig, *, ranks: Ranks, way_out: WayOut
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (pixels, batch), equally often on every rank: at ZeRO-3 a forward pass is a collective.

    Where a rank has no images left, or has taken the way out, it gets one blank picture with an empty batch.

    Shape: pixels float (max(1, n), 3, H, W).
    """
    augment = config.augment
    loader = EvaluateLoader(
        corpus,
        augment,
        batch=config.evaluate.batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=config.data.threads,
        decoder=config.data.decoder,
        meanwhile=way_out.look,
    )
    size = augment.image_size
    batches = way_out.before_the_end_of(loader)
    for _ in range(loader.steps):
        one = next(batches, Batch.blank(image_size=size, samples=0))
        if way_out.taken and config.zero.stage < 3:
            return
        images = one.images if len(one) else Batch.blank(image_size=size, samples=1).images
        pixels = normalise(on_device(images, ranks.device), mean=augment.mean, std=augment.std)
        yield pixels, one
        way_out.breathe()
