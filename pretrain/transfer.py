"""How well the features would transfer: neighbours of the same class in a second labelled corpus."""

from __future__ import annotations

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

_CHUNK = 1024


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
        share = neighbour_accuracy(rows, targets, neighbours=self._config.evaluate.neighbours)
        return Findings({TRANSFER: share}, bad)

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


def neighbour_accuracy(features: Tensor, labels: Tensor, *, neighbours: int) -> float:
    """Return the share of rows whose `neighbours` nearest other rows vote, by similarity, for their label.

    Shape: features (N, D), of length 1 each; labels int64 (N,), N at least 2.
    """
    classes = int(labels.max()) + 1
    right = 0
    for begin in range(0, len(features), _CHUNK):
        rows = features[begin : begin + _CHUNK]
        similarity = rows @ features.T
        similarity[torch.arange(len(rows)), torch.arange(begin, begin + len(rows))] = -torch.inf
        near = similarity.topk(min(neighbours, len(features) - 1), dim=1)
        votes = torch.zeros(len(rows), classes, device=features.device)
        votes.scatter_add_(1, labels[near.indices], near.values + 1)
        right += int((votes.argmax(1) == labels[begin : begin + len(rows)]).sum())
    return right / len(features)
