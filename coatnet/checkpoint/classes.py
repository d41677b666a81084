"""Which classes of one vocabulary are which of another: by name, by WordNet id, by number. Knows no model.

Class names come from files that others wrote, hence the check for what has no place in a name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from coatnet.config import UserError

_WORDNET = re.compile(r"n\d{8}")
_MAX_NAME = 500
_MAX_CLASS_FILE_BYTES = 16 * 1024 * 1024
_SHOWN = 60


def check_class_names(names: Sequence[str], *, origin: str) -> list[str]:
    """Return the names, if they are fit for a terminal, a file and a web page.

    Raises:
        UserError: a name is no text, is too long, or holds control or direction-changing characters.
    """
    for number, name in enumerate(names):
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            raise UserError(f"{origin}: class {number} is no text of 1 to {_MAX_NAME} characters")
        bad = next((c for c in name if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}), None)
        if bad is not None:
            raise UserError(
                f"{origin}: class {number} holds the control character U+{ord(bad):04X}; "
                f"mend the name {name[:_SHOWN]!a}"
            )
    return list(names)


def read_class_names(path: Path) -> list[str]:
    """Read one class name per line.

    Raises:
        UserError: no such file, no text, or a name that is not fit to be shown.
    """
    try:
        if path.stat().st_size > _MAX_CLASS_FILE_BYTES:
            raise UserError(f"{path}: more than {_MAX_CLASS_FILE_BYTES >> 20} MiB")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no UTF-8 text") from None
    lines = text.removesuffix("\n").split("\n")  # not splitlines, which hides control characters
    return check_class_names([line.removesuffix("\r") for line in lines], origin=str(path))


def class_key(name: str) -> str:
    """Return what identifies a class: its WordNet id where it has one, else its name."""
    found = _WORDNET.match(name)
    return found[0] if found else name


def match_classes(known: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return for each wanted class its place in the known ones, or None.

    Names match by WordNet id or as they are; if none does and all wanted names are numbers, as in the
    folders of ImageNet-V2, they are places in the known list.
    """
    places = {class_key(name): place for place, name in enumerate(known)}
    found = [places.get(class_key(name)) for name in wanted]
    if all(place is None for place in found) and all(name.isascii() and name.isdigit() for name in wanted):
        return [int(name) if int(name) < len(known) else None for name in wanted]
    return found


def matching_rows(known: Sequence[str] | None, wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Return (place among the wanted classes, place among the known ones) of those in both.

    Raises:
        UserError: the checkpoint names no classes, or none of these.
    """
    if known is None:
        raise UserError("head.keep_rows is 'matching', but the checkpoint carries no class names")
    pairs = [(new, old) for new, old in enumerate(match_classes(known, wanted)) if old is not None]
    if not pairs:
        raise UserError(
            f"head.keep_rows is 'matching', but none of the {len(wanted)} classes is among the checkpoint's "
            f"{len(known)}; allowed: none"
        )
    return pairs


def evaluation_columns(
    known: Sequence[str] | None, wanted: Sequence[str], *, origin: str
) -> list[int] | None:
    """Return the model's outputs that a corpus of the `wanted` classes is judged by, None for all in order.

    A corpus of some of the classes, such as ImageNet-A and -R, is judged among these only, as its authors do.

    Raises:
        UserError: the model does not know a class of the corpus.
    """
    if known is None or list(known) == list(wanted):
        return None
    found = match_classes(known, wanted)
    missing = [name for name, place in zip(wanted, found, strict=True) if place is None]
    if missing:
        raise UserError(
            f"{origin}: the model knows {len(known)} classes and {missing[0]!r} is not among them "
            f"({len(missing)} of {len(wanted)} unknown); evaluate on classes it was trained for"
        )
    columns = [place for place in found if place is not None]
    if len(set(columns)) != len(columns):
        raise UserError(f"{origin}: two of its classes are the same class of the model")
    return columns
