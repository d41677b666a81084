"""Figures for files and TensorBoard. Imports matplotlib only when it is called."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

_MOST_LETTERS = 24  # of a name: longer ones leave no room for what they name


def make_figure(**options: Any) -> Any:
    """Return an empty matplotlib figure, which no window belongs to.

    Where a home cannot be written, as on many nodes, matplotlib keeps its fonts in a temporary folder; its
    advice about that is no matter of a run's. Nor are letters that the font lacks and draws as boxes.
    """
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(**options)


def name_cells(axes: Any, names: Sequence[str]) -> None:
    """Name the rows and the columns of a matrix of classes."""
    shown = [name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…" for name in names]
    axes.set_xticks(range(len(shown)), shown, rotation=90, parse_math=False)
    axes.set_yticks(range(len(shown)), shown, parse_math=False)
