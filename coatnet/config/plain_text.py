"""Text for a terminal, a file or a page: names of classes, files, tensors that others wrote; and numbers."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeGuard

from coatnet.config.errors import UserError

_UNFIT = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, direction-changing, half a pair, line and paragraph ends
_MAX_NAME = 500
_SHOWN = 60
_MOST = 2.0**63


def plain(text: str) -> str:
    """Return a text whose control and direction-changing characters are spelled out."""
    unfit = _unfit_characters(text)
    return "".join(ascii(c)[1:-1] if c in unfit else c for c in text) if unfit else text


def one_line(text: str) -> str:
    """Return a message as one plain line."""
    return plain(" ".join(text.split()))


def number_of(count: int, one: str, several: str | None = None) -> str:
    """Write how many of something there are: 1 shard, 2,000 shards, 2 classes."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def giga(count: float) -> str:
    """Write a count in billions: 0.0026, 4.14, 2,586.12."""
    billions = count / 1e9
    return f"{billions:.2g}" if billions < 0.1 else f"{billions:,.2f}"


def json_number(value: float) -> float | str:
    """Return a number for JSON, which has none that is not finite: such a one becomes text."""
    return value if math.isfinite(value) else str(value)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether what was read is a number to count with: finite, and no whole page of digits."""
    return isinstance(value, int | float) and abs(value) < _MOST


def json_text(value: Any, **style: Any) -> str:
    """Write values as JSON that every reader takes: Python's own writes words that JSON does not have.

    Args:
        value: plain containers; a number that is not finite becomes text, which `float` reads back.
        style: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **style)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return json_number(value) if isinstance(value, float) else value


def check_class_names(names: Sequence[str], *, origin: str) -> list[str]:
    """Return the names, if they are fit for a terminal, a file and a web page.

    Raises:
        UserError: a name is no text, is too long, or holds control or direction-changing characters; or two
            differ by nothing that is seen, as where files came from macOS and from elsewhere.
    """
    for number, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            raise UserError(f"{origin}: class {number} is not text of 1 to {_MAX_NAME} characters")
    if unfit := _unfit_characters("".join(names)):
        number, name = next((i, name) for i, name in enumerate(names) if not unfit.isdisjoint(name))
        bad = next(c for c in name if c in unfit)
        raise UserError(
            f"{origin}: class {number} holds the control character U+{ord(bad):04X}; "
            f"mend the name {name[:_SHOWN]!a}"
        )
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name if name.isascii() else unicodedata.normalize("NFC", name), name)
        if other != name:
            raise UserError(
                f"{origin}: {other[:_SHOWN]!a} and {name[:_SHOWN]!a} are one name, written in two ways; "
                "write both in one"
            )
    return list(names)


def _unfit_characters(text: str) -> set[str]:
    return {c for c in set(text) if unicodedata.category(c) in _UNFIT}
