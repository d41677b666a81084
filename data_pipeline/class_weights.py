"""How much each class weighs so that a rare one counts as much as another. Knows no loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coatnet.config import UserError
from data_pipeline.record import SampleSource


def loss_weights(corpora: Sequence[SampleSource], kind: str) -> list[float] | None:
    """Return what `loss.class_weights` asks for, by class: samples / (classes · samples of it), or None.

    Raises:
        UserError: a corpus has several labels per image.
    """
    if kind != "balanced":
        return None
    check_single_labels(corpora, needed_by="loss.class_weights is 'balanced'")
    counts = np.sum([corpus.class_counts() for corpus in corpora], axis=0)
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()


def check_single_labels(corpora: Sequence[SampleSource], *, needed_by: str) -> None:
    """Check that every image has one label.

    Raises:
        UserError: a corpus has several labels per image.
    """
    if any(corpus.label_kind != "single" for corpus in corpora):
        raise UserError(f"{needed_by}, but a corpus has several labels per image")
