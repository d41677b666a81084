"""How well the features would transfer: neighbours of the same class in a second labelled corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coatnet.runtime.ranks import Ranks
from coatnet.training.sections import TRANSFER
from coatnet.training.way_out import WayOut
from data_pipeline.class_weights import check_single_labels
from data_pipeline.record import SampleSource
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Engine
from pretrain.evaluation import Findings, equal_batches

_MOST_SIMILARITIES = 1 << 26  # at once, and as many votes, 256 MiB each: there are images squared of them


class TransferProbe:
    """k nearest neighbours by cosine similarity, each image against all others (leave one out)."""

    def __init__(
        self, corpus: SampleSource, config: PretrainConfig, *, ranks: Ranks, way_out: WayOut
    ) -> None:
        """Take a corpus of any classes.

        Raises:
            UserError: its images have several labels each.
        """
        check_single_labels([corpus], needed_by="evaluate.transfer")
        self._corpus, self._config, self._ranks, self._way_out = corpus, config, ranks, way_out

    def measure(self, engine: Engine) -> Findings:
        """Measure the share of images whose neighbours vote for their class, where any can be read.

        Raises:
            Stopped: all ranks have taken the way out.
        """
        features, labels, bad = self._features(engine)
        rows, targets = self._ranks.rows(features), self._ranks.rows(labels)
        if len(rows) < 2:
            return Findings({}, bad)
        right = torch.zeros((), dtype=torch.int64, device=self._ranks.device)
        right += right_votes(
            rows,
            targets,
            neighbours=self._config.evaluate.neighbours,
            share=self._ranks.rank,
            shares=self._ranks.world_size,
            breathe=self._way_out.breathe,
        )
        self._ranks.all_reduce_sum(right)
        return Findings({TRANSFER: int(right) / len(rows)}, bad)

    def _features(self, engine: Engine) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
        """Catch what enters the last layer during ordinary forward passes, which work at every ZeRO stage.

        Returns:
            This rank's features (n, D), of length 1 each, their labels (n,), and the samples without any.
        """
        caught: list[Tensor] = []
        layer = engine.module.get_submodule("head.logits")
        hook = layer.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float()))
        features, labels, bad = [], [], []
        try:
            with engine.evaluating() as forward:
                for pixels, batch in equal_batches(
                    self._corpus, self._config, ranks=self._ranks, way_out=self._way_out
                ):
                    forward(pixels)
                    features.append(functional.normalize(caught.pop()[: len(batch)], dim=1))
                    labels.append(batch.labels)
                    bad += [sample.to_dict() for sample in batch.bad]
        finally:
            hook.remove()
        self._way_out.agree()
        return torch.cat(features), torch.cat(labels).to(self._ranks.device), bad


def right_votes(
    features: Tensor,
    labels: Tensor,
    *,
    neighbours: int,
    share: int = 0,
    shares: int = 1,
    breathe: Callable[[], None] = lambda: None,
) -> int:
    """Return for how many rows the `neighbours` nearest other rows vote, by similarity, for their label.

    Args:
        features, labels: of all rows.
        neighbours: how many vote, if there are as many.
        share, shares: count the blocks share, share + shares, … of rows alone.
        breathe: called with every block.

    Shape: features (N, D), of length 1 each; labels int64 (N,), N at least 2.
    """
    classes = int(labels.max()) + 1
    right = 0
    block = max(1, _MOST_SIMILARITIES // max(len(features), classes))
    for begin in range(share * block, len(features), shares * block):
        rows = features[begin : begin + block]
        similarity = rows @ features.T
        similarity[torch.arange(len(rows)), torch.arange(begin, begin + len(rows))] = -torch.inf
        near = similarity.topk(min(neighbours, len(features) - 1), dim=1)
        votes = torch.zeros(len(rows), classes, device=features.device)
        votes.scatter_add_(1, labels[near.indices], near.values + 1)
        right += int((votes.argmax(1) == labels[begin : begin + len(rows)]).sum())
        breathe()
    return right
