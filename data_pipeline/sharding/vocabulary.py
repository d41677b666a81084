"""From labels as sources write them (names or numbers, one or several, with weights) to numbered classes."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coatnet.config import UserError
from coatnet.config.plain_text import check_class_names
from coatnet.runtime.class_names import read_class_names
from coatnet.runtime.regular_files import read_text
from data_pipeline.index import LABEL

RawLabel = str | int
RawLabels = list[tuple[RawLabel, float]]
_MAX_CLASSES = 1_000_000
_MAX_HIERARCHY_BYTES = 1 << 28  # WordNet's has 2 MB
_NUMBER = re.compile("0|-?[1-9][0-9]*")  # -1, which often stands for none, is no class among numbers

_DECIMAL = re.compile(r"-?[0-9]+\.0*")


@dataclass(frozen=True)
class Labels:
    """Numbered labels; the columns of a `Listing`."""

    classes: list[str]
    label: NDArray[np.int64]
    rows: NDArray[np.void] | None
    first: NDArray[np.int64] | None


class LabelColumns:
    """Labels of samples as they come, in columns: lists of pairs take several times the memory."""

    def __init__(self) -> None:
        self._numbers: dict[RawLabel, int] = {}
        self._label, self._weight, self._ends = array("i"), array("d"), array("q", [0])

    def add(self, labels: RawLabels) -> None:
        """Take a sample's."""
        for label, weight in labels:
            self._label.append(self._numbers.setdefault(label, len(self._numbers)))
            self._weight.append(weight)
        self._ends.append(len(self._label))

    @property
    def found(self) -> list[RawLabel]:
        """Each label once, in the order in which they came."""
        return list(self._numbers)

    @property
    def columns(self) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
        """Labels by their place in `found`, their weights, and where each sample's begin, with the end.

        Shape: (labels,), (labels,), (samples + 1,).
        """
        return np.asarray(self._label), np.asarray(self._weight), np.asarray(self._ends)


def read_classes(path: Path) -> list[str]:
    """Read class names, one a line; a line's number is the class's.

    Raises:
        UserError: the file cannot be read, or a name is empty, not fit to be shown, or comes twice.
    """
    names = read_class_names(path)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: {twice!r} comes more than once")
    return names


def number_labels(
    raw: LabelColumns, *, classes: list[str] | None, origin: str, names: Sequence[str], multi: bool
) -> Labels:
    """Number labels: by the given classes, else by sorted names, or by themselves if all are numbers.

    Args:
        raw: of the samples; every sample with exactly one of weight 1 makes a single-label corpus.
        names: of the samples, for errors.
        multi: make one of several labels all the same.

    Raises:
        UserError: a label that is not among the classes, may be either of two, or is no name fit to be shown,
            or a sample without one among samples that have one each.
    """
    found = raw.found
    label, weight, first = raw.columns
    own = check_class_names(_own_classes(found, origin), origin=origin) if classes is None else classes
    numbers: dict[RawLabel, int] = {name: number for number, name in enumerate(own)}
    if classes is None:  # among names a number is a name, and not a place among them
        numbers |= {one: numbers[str(one)] for one in found}
    else:
        _check_places(own, found, origin)
        numbers |= {number: number for number in range(len(own))}
    unknown = next((place for place, one in enumerate(found) if one not in numbers), None)
    if unknown is not None:
        at = int(np.searchsorted(first, int((label == unknown).argmax()), side="right")) - 1
        raise UserError(
            f"{origin}: {names[at]} has the label {found[unknown]!r}, which is none of {len(own)} classes"
        )
    number, many = np.array([numbers[one] for one in found], np.int64), np.diff(first)
    if not multi and (many <= 1).all() and (weight == 1.0).all():
        if not many.all():
            raise UserError(f"{origin}: {names[int(many.argmin())]} has no label, where others have one each")
        return Labels(own, number[label], None, None)
    rows = np.empty(len(label), dtype=LABEL)
    rows["label"], rows["weight"] = number[label], weight
    return Labels(own, np.zeros(len(many), np.int64), rows, first)


def parse_labels(value: object) -> RawLabels:
    """Read one cell: a name, a number, a list of either or of (label, weight), a mapping, or `a;b:0.5`.

    Raises:
        ValueError: it is nothing of the kind, or gives a label several weights.
    """
    if isinstance(value, str):
        return _once([_parse_text(part) for part in value.split(";") if part.strip()])
    if isinstance(value, dict):
        return [_weighted(label, weight) for label, weight in value.items()]
    if isinstance(value, list):
        return _once([_parse_entry(entry) for entry in value])
    return [_weighted(value, 1.0)]


def _once(labels: RawLabels) -> RawLabels:
    """Return each label once, as where every object in an image has one.

    Raises:
        ValueError: one comes with several weights.
    """
    weights: dict[str, float] = {}
    for label, weight in labels:
        known = weights.setdefault(str(label), weight)  # 1 and "1" are one class
        if known != weight:
            raise ValueError(f"{label!r} has the weights {known:g} and {weight:g}; allowed: one")
    return labels if len(weights) == len(labels) else list({str(one[0]): one for one in labels}.values())


def read_hierarchy(path: Path, classes: list[str]) -> dict[str, str]:
    """Read lines of `parent child` (WordNet's is-a file) and return the parents that the classes lead to.

    Raises:
        UserError: the file cannot be read.
    """
    pairs = [line.split() for line in read_text(path, most=_MAX_HIERARCHY_BYTES).splitlines()]
    parents = {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
    needed: dict[str, str] = {}
    for name in classes:
        while name in parents and name not in needed:
            needed[name] = parents[name]
            name = parents[name]
    return needed


def _own_classes(found: Sequence[RawLabel], origin: str) -> list[str]:
    if found and all(isinstance(label, int) for label in found):
        numbers = [int(label) for label in found]
        if min(numbers) < 0 or max(numbers) >= _MAX_CLASSES:
            present = f"labels from {min(numbers):,} to {max(numbers):,}"
            raise UserError(f"{origin}: {present}; allowed: 0 to {_MAX_CLASSES - 1:,}")
        return [str(number) for number in range(max(numbers) + 1)]
    if found and all(isinstance(label, int) or _DECIMAL.fullmatch(label) for label in found):
        decimal = next(label for label in found if isinstance(label, str))
        raise UserError(
            f"{origin}: labels such as {decimal!r} are decimals, as numbers become where some are missing; "
            "write them without the point, or, if these are names, list them in --classes"
        )
    return sorted({str(label) for label in found})  # 1 and ["1"] are one name


def _check_places(classes: list[str], found: Sequence[RawLabel], origin: str) -> None:
    """Refuse numbers as labels where names are numbers, too, and not those of their places.

    Raises:
        UserError: a label may be the name of one class and the place of another.
    """
    label = min((label for label in found if isinstance(label, int)), default=None)
    for place, name in enumerate(classes if label is not None else []):
        if name.isascii() and name.isdigit() and int(name) != place:
            raise UserError(
                f"{origin}: the label {label} among classes whose names are numbers: a number is the class's "
                f"place, and place {place} is named {name!r}; name the classes by more than a number"
            )


def _parse_text(text: str) -> tuple[RawLabel, float]:
    text = text.strip()
    name, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon else math.nan
    except ValueError:
        weight = math.nan
    if not 0.0 <= weight < math.inf:  # the colon belongs to the name
        return _number_or_name(text), 1.0
    if weight > 1.0:  # a ratio or a time of day, as likely as not
        raise ValueError(
            f"{text!r} is read as {name!r} with the weight {number}; allowed: 0 to 1, and {text}:1 for a "
            f"class named {text!r}"
        )
    return _number_or_name(name), weight


def _number_or_name(text: str) -> RawLabel:
    """Take `007` for a name: as a number it would lose its zeros, and be one class with `7`."""
    return int(text) if _NUMBER.fullmatch(text) else text


def _parse_entry(entry: object) -> tuple[RawLabel, float]:
    if isinstance(entry, list | tuple) and len(entry) == 2:
        return _weighted(entry[0], entry[1])
    if isinstance(entry, dict) and "label" in entry:
        return _weighted(entry["label"], entry.get("weight", 1.0))
    return _weighted(entry, 1.0)


def _weighted(label: object, weight: object) -> tuple[RawLabel, float]:
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise ValueError(f"{label!r} is not a label")
    if not isinstance(weight, int | float) or not 0.0 <= weight <= 1.0:  # above, a loss has no floor
        raise ValueError(f"{label!r} has the weight {weight!r}; allowed: 0 to 1")
    return label, float(weight)
