"""Whose config a file is, where the command that it was given to cannot take it. Knows no command by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from coatnet.config.errors import ConfigError


# Every question to the installed packages reads all their files: a pipeline would ask for each of its stages.
@cache
def schemas() -> Mapping[str, EntryPoint]:
    """Return where the commands that read a config keep its schema, by their names."""
    return {point.name: point for point in entry_points(group="coatnet.schemas")}


def refuse_anothers(schema: type, path: Path | str, *, takes: Callable[[Any], bool]) -> None:
    """Say that a file is the config of another command, if one takes it.

    Args:
        schema, path: what does not take the file, and the file.
        takes: tells whether another schema does, or raises a ConfigError.

    Raises:
        ConfigError: it is.
    """
    others = {name: point.load() for name, point in schemas().items()}
    own = next((name for name, other in others.items() if other is schema), None)
    if own is None:  # a section, or what no command is given
        return
    for name, other in others.items():
        try:
            is_its = name != own and takes(other)
        except ConfigError:
            continue
        if is_its:
            raise ConfigError(f"{path}: is a config of `coatnet {name}`, not of `coatnet {own}`")
