"""Figures for files and TensorBoard. Imports matplotlib only when it is called."""

from __future__ import annotations

import logging
import warnings
from typing import Any


def make_figure(**options: Any) -> Any:
    """Return an empty matplotlib figure, which no window belongs to.

    Where a home cannot be written, as on many nodes, matplotlib keeps its fonts in a temporary folder; its
    advice about that is no matter of a run's. Nor are letters that the font lacks and draws as boxes.
    """
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(**options)
