"""Which classes of one vocabulary are which of another: by name, by WordNet id, by number. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from coatnet.config import UserError

_WORDNET = re.compile(r"n\d{8}(?!\d)")


def check_class_count(names: Sequence[str], outputs: int, *, origin: str) -> None:
    """Make sure that there is a name for every output.

    Raises:
        UserError: there are more or fewer.
    """
    if len(names) != outputs:
        raise UserError(f"{origin}: {len(names)} class names for {outputs} outputs; give one for each")


def is_wordnet_id(key: str) -> bool:
    """Tell whether what identifies a class is a WordNet id."""
    return _WORDNET.fullmatch(key) is not None


def class_key(name: str) -> str:
    """Return what identifies a class: its WordNet id where it has one, else its name."""
    found = _WORDNET.match(name)
    return found[0] if found else name


def match_classes(known: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return for each wanted class its place in the known ones by WordNet id or name, or None.

    Raises:
        UserError: two of the known classes are the same, and one of the wanted could be either.
    """
    places: dict[str, int] = {}
    doubtful: set[str] = set()
    for place, name in enumerate(known):
        key = class_key(name)
        if places.setdefault(key, place) != place:
            doubtful.add(key)
    keys = [class_key(name) for name in wanted]
    both = next((key for key in keys if key in doubtful), None)
    if both is not None:
        raise UserError(
            f"the model knows two classes as {both!a}, and cannot tell which is meant; rename one"
        )
    return [places.get(key) for key in keys]


def matching_rows(known: Sequence[str] | None, wanted: Sequence[str]) -> list[tuple[int, int]]:
    """Return (place among the wanted classes, place among the known ones) of those in both.

    Raises:
        UserError: the checkpoint names no classes, or none of these.
    """
    if known is None:
        raise UserError("head.keep_rows is 'matching', but the checkpoint has no class names; allowed: none")
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
    Of a model without names the outputs are taken in order, or by number where the corpus's names are such.

    Raises:
        UserError: the model does not know a class of the corpus.
    """
    are_numbers = all(name.isascii() and name.isdigit() for name in wanted)
    if known is None:  # numbered folders come sorted as text: 0, 1, 10, 100, 2 …
        numbers = [int(name) for name in wanted] if are_numbers else []
        return numbers if sorted(numbers) == [*range(len(wanted))] != numbers else None
    if list(known) == list(wanted):
        return None
    found = match_classes(known, wanted)
    if not any(place is not None for place in found) and are_numbers:
        # As in the folders of ImageNet-V2, numbers are places among the model's classes.
        found = [int(name) if int(name) < len(known) else None for name in wanted]
    missing = [name for name, place in zip(wanted, found, strict=True) if place is None]
    if missing:
        raise UserError(
            f"{origin}: the model knows {len(known)} classes and {missing[0]!r} is not among them "
            f"({len(missing)} of {len(wanted)} unknown); evaluate on classes it was trained for"
        )
    columns = [place for place in found if place is not None]
    if len(set(columns)) != len(columns):
        raise UserError(f"{origin}: two of its classes are the same class of the model; merge them")
    return columns
