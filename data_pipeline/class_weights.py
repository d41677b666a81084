"""How much each class weighs so that a rare one counts as much as another. Knows no loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from coatnet.config import UserError
from coatnet.runtime.endings import RankError
from data_pipeline.open_corpus import check_same_everywhere
from data_pipeline.record import BadSampleError, SampleSource

if TYPE_CHECKING:
    from coatnet.runtime.ranks import Ranks  # loads torch

_BALANCED = "loss.class_weights is 'balanced'"


def loss_weights(corpora: Sequence[SampleSource], kind: str, *, ranks: Ranks) -> list[float] | None:
    """Return what `loss.class_weights` asks for, by class: samples / (classes · samples of it), or None.

    All ranks call this, and share the counting: where each of 512 reads the indexes of 10,000 shards, a file
    system opens five million files at every start.

    Raises:
        UserError: a corpus has several labels per image, is another on another rank, or cannot be counted.
    """
    if kind != "balanced":
        return None
    check_single_labels(corpora, needed_by=_BALANCED)
    check_same_everywhere(corpora, ranks, name="data.train")
    import torch

    share = {"share": ranks.rank, "shares": ranks.world_size}
    try:
        own = np.sum([corpus.class_counts(**share) for corpus in corpora], axis=0)
    except BadSampleError as error:
        raise RankError(f"{_BALANCED}: {error}") from None
    everyones = torch.from_numpy(own).to(ranks.device)
    ranks.all_reduce_sum(everyones)
    counts = everyones.cpu().numpy()
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()


def check_single_labels(corpora: Sequence[SampleSource], *, needed_by: str) -> None:
    """Check that every image has one label.

    Raises:
        UserError: a corpus has several labels per image.
    """
    if any(corpus.label_kind != "single" for corpus in corpora):
        raise UserError(f"{needed_by}, but a corpus has several labels per image")
