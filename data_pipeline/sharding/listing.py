"""What a source holds: one line per sample, columns as arrays; every payload is a byte range of some file.

All sources come down to this, so that planning and writing know none of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.sharding.vocabulary import LabelColumns, RawLabels, number_labels

Label = int | list[tuple[int, float]]

WHOLE_FILE = -1
_LISTED_AT_ONCE = 1000  # samples between two words about how far a listing is


class Item(NamedTuple):
    """One sample to be written; a tuple, since a data set has millions of them.

    Attributes:
        name: where it came from, for people.
        offset: of its payload in the file, or WHOLE_FILE.
        size: of its payload as listed.
        label: the class, or (class, weight) rows of a multi-label source.
    """

    name: str
    path: str
    offset: int
    size: int
    label: Label


@dataclass
class Listing:
    """A source's samples.

    Shape: file, offset, size, label (n,); for several labels per sample, `rows` of type LABEL and `first`
    (n + 1,) such that the sample's are `rows[first[i]:first[i + 1]]`.

    Attributes:
        root: folder that `files` are relative to.
        names: for people and for the split; empty where a sample's file names it.
        source: what the manifest says about the source.
    """

    root: Path
    classes: list[str]
    files: list[str]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int64]
    names: list[str] = field(default_factory=list)
    rows: NDArray[np.void] | None = None
    first: NDArray[np.int64] | None = None
    hierarchy: dict[str, str] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.file)

    @property
    def label_kind(self) -> str:
        """The manifest's word: "single" or "multi"."""
        return "single" if self.rows is None else "multi"

    def name(self, number: int) -> str:
        """Name a sample."""
        return self.names[number] if self.names else self.files[self.file[number]]

    def item(self, number: int) -> Item:
        """Return a sample's line."""
        return self.items(np.array([number]))[0]

    def items(self, numbers: NDArray[np.int64]) -> list[Item]:
        """Return the lines of some samples: five times as fast as one by one."""
        columns = (self.file, self.offset, self.size, self.label)
        lines = zip(numbers.tolist(), *(column[numbers].tolist() for column in columns), strict=True)
        root = f"{self.root}/" if self.root != Path() else ""
        return [
            Item(self.name(number), root + self.files[file], offset, size, self._label(number, label))
            for number, file, offset, size, label in lines
        ]

    def _label(self, number: int, label: int) -> Label:
        if self.rows is None or self.first is None:
            return label
        rows: list[tuple[int, float]] = self.rows[self.first[number] : self.first[number + 1]].tolist()
        return rows

    def digest(self) -> str:
        """Name the content, whatever it is called from here, to refuse going on with another one."""
        hierarchy = [self.hierarchy] if self.hierarchy else []
        hasher = xxhash.xxh3_64(repr((self.classes, self.label_kind, *hierarchy)).encode())
        here = f"{Path.cwd()}/" if self.root == Path() else ""
        files = (file if file.startswith("/") else here + file for file in self.files)
        for text in chain(files, self.names):
            hasher.update(text.encode("utf-8", "surrogateescape") + b"\0")
        for column in (self.file, self.offset, self.size, self.label, self.rows, self.first):
            if column is not None:
                hasher.update(np.ascontiguousarray(column).tobytes())
        return hasher.hexdigest()


class ListingMaker:
    """Takes a source's samples one by one, tells how many there are, and numbers their labels in the end."""

    def __init__(self, done: Callable[[int], None], *, files: Iterable[str] = ()) -> None:
        """Begin; `files` are listed whether they hold samples or not, the others as their samples come."""
        self._done = done
        self._files = {path: number for number, path in enumerate(files)}
        self._file, self._offset, self._size = array("q"), array("q"), array("q")
        self._names: list[str] = []
        self._labels = LabelColumns()

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, path: str, labels: RawLabels, *, offset: int, size: int) -> None:
        """Take a sample; arguments as of `Item`."""
        self._file.append(self._files.setdefault(path, len(self._files)))
        self._offset.append(offset)
        self._size.append(size)
        self._names.append(name)
        self._labels.add(labels)
        if len(self._names) % _LISTED_AT_ONCE == 0:
            self._done(_LISTED_AT_ONCE)

    def finish(
        self, *, classes: list[str] | None, multi: bool, origin: str, source: dict[str, Any]
    ) -> Listing:
        """Return all of them.

        Raises:
            UserError: as `number_labels` does.
        """
        self._done(len(self._names) % _LISTED_AT_ONCE)
        numbered = number_labels(self._labels, classes=classes, origin=origin, names=self._names, multi=multi)
        file, offset, size = (np.asarray(one) for one in (self._file, self._offset, self._size))
        return Listing(
            root=Path(),
            files=list(self._files),
            file=file,
            offset=offset,
            size=size,
            names=self._names,
            source=source,
            **vars(numbered),
        )
