"""Files of class names, one a line, as users write them. Knows no model and no corpus."""

from __future__ import annotations

from pathlib import Path

from coatnet.config.plain_text import check_class_names
from coatnet.runtime.regular_files import read_text

_MAX_BYTES = 4 << 20  # 40,000 names of a hundred characters


def read_class_names(path: Path) -> list[str]:
    """Read one class name per line; spaces around it and empty lines at the end do not count.

    Raises:
        UserError: no such file, no text, an empty line among others, or a name that is not fit to be shown.
    """
    # Neither splitlines nor a bare strip, which hide control characters.
    text = read_text(path, most=_MAX_BYTES)
    lines = [line.removesuffix("\r").strip(" ") for line in text.split("\n")]
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return check_class_names(lines, origin=str(path))
