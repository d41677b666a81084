"""Where tables and figures are printed. Imports rich only when it is called."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_UNBROKEN = 10_000  # characters


def make_console(*, is_bounded: bool = True) -> Console:
    """Return a console as wide as its terminal, if it is bounded; into files and pipes no line is broken."""
    from rich.console import Console

    is_bounded = is_bounded and (sys.stdout.isatty() or "COLUMNS" in os.environ)
    # `:cat:` in a name is no picture.
    return Console(emoji=False, width=None if is_bounded else _UNBROKEN)
