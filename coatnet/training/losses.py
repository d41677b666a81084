"""The two losses of the paper's recipes, and the probabilities that each makes of logits. Knows no loop.

Computed in fp32, or in fp64 where the logits are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Loss(Protocol):
    """A loss of logits and targets; `weights` (B,) multiply the samples' values."""

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor: ...


def make_loss(
    name: str,
    smoothing: float = 0.0,
    *,
    per_sample: bool = False,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """Return `loss(logits, targets, weights)`, the mean over the batch or one value per sample.

    Softmax smoothing is t·(1−s) + s/K. Sigmoid losses are summed over classes, with t·(1−s) + s/2: the floor
    keeps the logits of absent classes finite.

    Shape:
        class_weights (K,), by which a sample's loss is multiplied: its class's, or the mean by its targets;
        logits (B, K); targets int64 (B,), or float (B, K) of probabilities (softmax) or presences (sigmoid).
    Source: arXiv 2106.04803, Table 10 ("sigmoid" and "softmax" losses); the smoothing of the sigmoid is
        TensorFlow's BinaryCrossentropy, which the paper does not spell out.
    """
    each = {"softmax": _softmax_each, "sigmoid": _sigmoid_each}[name]

    @cache  # a copy of numbers to a GPU waits for all that the GPU has to do
    def table_on(device: torch.device) -> Tensor:
        return torch.tensor(class_weights, device=device)

    def loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        values = each(logits.to(exact), targets, smoothing)
        if weights is not None:
            values = values * weights
        if class_weights is not None:
            table = table_on(values.device)
            values = values * (targets.float() @ table if targets.ndim == 2 else table[targets])
        return values if per_sample else values.mean()

    return loss


def probabilities(logits: Tensor, loss: str) -> Tensor:
    """Return what a model trained by a loss of this name says of each class: softmax adds up to 1.

    Shape: (…, K) → the same.
    """
    return logits.softmax(dim=-1) if loss == "softmax" else logits.sigmoid()


def log_odds(logits: Tensor, loss: str) -> Tensor:
    """Return the values whose sigmoid is `probabilities`, which tell small ones and those near 1 apart.

    Shape: (…, K) → the same; finite where the logits are, also where a softmax is 1 to the last bit.
    """
    if loss == "sigmoid":
        return logits
    shares = logits.log_softmax(dim=-1)
    others = -torch.expm1(shares)
    return shares - others.clamp(min=torch.finfo(shares.dtype).tiny).log()


def _softmax_each(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if targets.ndim == 1:
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    soft = targets.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(soft * functional.log_softmax(logits, dim=1)).sum(dim=1)


def _sigmoid_each(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if targets.ndim == 1:
        targets = functional.one_hot(targets, logits.shape[1])
    soft = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(dim=1)
