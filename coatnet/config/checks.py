"""Checks that config sections share in `__post_init__`; each raises ValueError, which gets its path later.

The last one is of commands' options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from coatnet.config.duration import Duration
from coatnet.config.errors import UserError
from coatnet.config.plain_text import plain

_LARGEST_SIZE = 16384  # pixels: tables of relative biases, made before any memory is measured, grow with it
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Check a choice."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def above_zero(name: str, value: float) -> None:
    """Check a finite positive number."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; allowed: above 0")


def at_least_one(name: str, value: int) -> None:
    """Check a count."""
    if value < 1:
        raise ValueError(f"{name} is {value}; allowed: 1 or more")


def up_to(name: str, value: float, *, most: int) -> None:
    """Check a positive number that has a bound."""
    if not 0.0 < value <= most:
        raise ValueError(f"{name} is {value}; allowed: above 0, up to {most}")


def at_least_zero(name: str, value: float) -> None:
    """Check a number that may be none."""
    if value < 0:
        raise ValueError(f"{name} is {value}; allowed: 0 or more")


def within(name: str, value: float, *, least: float, most: float) -> None:
    """Check a number between two others."""
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; allowed: {least} to {most}")


def duration(name: str, text: str, *, may_be_none: bool = False) -> Duration:
    """Check and read a duration, in a unit of training or of time."""
    try:
        found = Duration.parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not found.value and not may_be_none:
        raise ValueError(f"{name} is {text!r}; allowed: above 0")
    return found


def counted(name: str, text: str, *, may_be_none: bool = False) -> None:
    """Check a duration in epochs, steps or images."""
    if duration(name, text, may_be_none=may_be_none).is_time:
        raise ValueError(f"{name} is {text!r}; allowed: epochs, steps or images")


def folder(name: str, path: str | None, *, allowed: str) -> None:
    """Check that a path is not blank and has no control characters; None is whatever the section says."""
    if path is not None and not path.strip():
        raise ValueError(f"{name} is {path!r}; allowed: {allowed}")
    if path is not None and plain(path) != path:
        raise ValueError(f"{name} is {path!r}; allowed: {allowed}, without control characters")


def below_one(name: str, value: float) -> None:
    """Check a share that is 0 where it is off."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}; allowed: from 0 (off) to below 1")


def multiple_of(name: str, value: int, factor: int) -> None:
    """Check a size."""
    if not factor <= value <= _LARGEST_SIZE or value % factor:
        raise ValueError(f"{name} is {value}; allowed: multiples of {factor} up to {_LARGEST_SIZE}")


def no_url(name: str, path: Path | str | None) -> None:
    """Check a path of this machine's file system; a `Path` has taken one of a URL's slashes away."""
    if path is not None and _URL.match(str(path)):
        raise ValueError(f"{name} is {path}; allowed: a folder or file, no URL (fetch or copy it)")


def folder_to_write(name: str, path: Path | None) -> None:
    """Check that a path is a folder of this machine that takes files, or may become one."""
    no_url(name, path)
    if path is None or not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise ValueError(f"{name} is {path}, which is no folder; allowed: a folder, or a name that is free")
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"{name} is {path}, which takes no files from you; allowed: a folder that does")


def file_to_write(path: Path, *, endings: Sequence[str]) -> None:
    """Check that a path can become a file, before the work whose result it is.

    Raises:
        UserError: of what it cannot.
    """
    if path.suffix.lower() not in endings:
        raise UserError(f"{path}: ends in {path.suffix or 'nothing'}; allowed: {', '.join(endings)}")
    if not os.path.isdir(path.parent):
        raise UserError(f"{path}: there is no folder {path.parent}")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{path}: {path.parent} takes no files from you")
