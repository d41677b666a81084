"""The figures of an evaluation in the middle of a training. Knows no loop."""

from __future__ import annotations

from typing import Any

from torch import nn

from data_pipeline.augment_config import AugmentConfig
from data_pipeline.record import SampleSource
from finetune.evaluation.figures import Figures, figures
from finetune.evaluation.measure import measure


def measure_figures(
    model: nn.Module, corpus: SampleSource, augment: AugmentConfig, **options: Any
) -> Figures:
    """Measure quietly, with the options of `measure`, what `coatnet evaluate` would report."""
    result = measure(model, corpus, augment, show_progress=False, **options)
    return figures(result.predictions, classes=len(corpus.classes))
