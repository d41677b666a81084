"""Pictures for TensorBoard: the confusion of an evaluation, and where the time went. Knows no run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from coatnet.runtime.drawing import make_figure, name_cells
from coatnet.runtime.lives import CLASSES

_NAMED_CLASSES = 30
_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
# TensorBoard shows pictures three inches wide: letters of larger ones are not read there.
_INCHES = (5.2, 3.4)
_LEAST_INCHES, _INCHES_A_NAME = 3.6, 0.1
# The report's colours, in the order of the account's classes.
_COLOURS = ("#4456c7", "#8a3f8f", "#c4990c", "#0a7a5c", "#b3541e", "#2f9ac4", "#6e7781", "#a3343f", "#b8c0c8")


def confusion_figure(confusion: Tensor, classes: Sequence[str]) -> Any:
    """Draw how the images of each true class (rows) were classified, as shares.

    Shape: confusion int64 (K, K).
    """
    side = _LEAST_INCHES + _INCHES_A_NAME * min(len(classes), _NAMED_CLASSES)
    figure = make_figure(figsize=(side * 1.15, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= _NAMED_CLASSES:
        name_cells(axes, classes)
    return figure


def account_figure(history: Sequence[dict[str, float]]) -> Any:
    """Draw the time account as a stack: of each stretch of wall time, the share of every class.

    Args:
        history: seconds of every class since the run's first start, oldest first.
    """
    figure = make_figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    seconds = [sum(one.values()) for one in history]
    unit, length = next((one for one in _UNITS if seconds[-1] >= 2 * one[1]), _UNITS[-1])
    walls = [each / length for each in seconds]
    # Every stretch is a step: its shares stand at both of its ends.
    edges = [wall for stretch in pairwise(walls) for wall in stretch]
    layers = [
        [share for stretch in pairwise(history) for share in [_percent(name, *stretch)] * 2]
        for name in CLASSES
    ]
    axes.stackplot(edges, layers, labels=CLASSES, colors=_COLOURS)
    axes.set_xlim(walls[0], max(walls[-1], walls[0] + 1e-9))
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"{unit} since the first start")
    axes.set_ylabel("% of the time")
    figure.legend(loc="outside right upper", reverse=True, frameon=False)
    return figure


def _percent(name: str, earlier: dict[str, float], later: dict[str, float]) -> float:
    spent = sum(later.values()) - sum(earlier.values())
    return 100 * (later[name] - earlier[name]) / spent if spent > 0 else 0.0
