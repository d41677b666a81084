"""Checks that config sections share in `__post_init__`; each raises ValueError, which gets its path later."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from coatnet.config.duration import Duration

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


def at_least_zero(name: str, value: int) -> None:
    """Check a count that may be none."""
    if value < 0:
        raise ValueError(f"{name} is {value}; allowed: 0 or more")


def counted(name: str, text: str) -> None:
    """Check a duration in epochs, steps or images."""
    if Duration.parse(text).is_time:
        raise ValueError(f"{name} is {text!r}; allowed: epochs, steps or images")


def below_one(name: str, value: float) -> None:
    """Check a share that is 0 where it is off."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}; allowed: from 0 (off) to below 1")


def multiple_of(name: str, value: int, factor: int) -> None:
    """Check a size."""
    if value < factor or value % factor:
        raise ValueError(f"{name} is {value}; allowed: multiples of {factor}")


def no_url(name: str, path: Path | str | None) -> None:
    """Check a path of this machine's file system; a `Path` has taken one of a URL's slashes away."""
    if path is not None and _URL.match(str(path)):
        raise ValueError(f"{name} is {path}; allowed: a folder or file, no URL (fetch or copy it)")
