"""The forms in which evaluation sets lie about: shards, image folders, flat folders with a file of labels.

ImageNet's validation set comes as folders of synset ids or flat with a label file; -V2 as folders of numbers,
-A and -R as folders of some synsets: `coatnet.checkpoint.classes` matches their names. Knows no model.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from coatnet.checkpoint.classes import class_key, evaluation_columns, is_wordnet_id, match_classes
from coatnet.checkpoint.inspection import Description
from coatnet.config import UserError
from coatnet.runtime.regular_files import read_text
from data_pipeline.class_weights import check_single_labels
from data_pipeline.folder import FolderCorpus
from data_pipeline.open_corpus import open_corpus
from data_pipeline.record import SampleSource
from data_pipeline.remote.address import is_url
from finetune.evaluation.predictions import Predictions

_VALIDATION_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_NUMBER = re.compile(r"[0-9]{1,9}")  # thousands of digits are no number that Python would read
_REAL_CLASSES = 1000
_MAX_LABEL_FILE_BYTES = 8 << 20  # the validation set's 50,000 lines take 2 MiB


def check_evaluation_set(
    path: Path | str,
    *,
    labels: Path | None = None,
    real: Path | None = None,
    model: Description | None = None,
) -> None:
    """Look at the files of an evaluation, before a model is loaded.

    Args:
        path: what is evaluated on; what lies elsewhere is not looked at.
        labels, real: files of labels.
        model: what it says of itself.

    Raises:
        UserError: one is not what it should be, the model does not know its classes, or `real` its images.
    """
    if labels is not None:
        tell_unlabelled(Path(path), names=[name for name, _, _ in _label_lines(labels)], labels=labels)
    reassessed = None if real is None else read_real_labels(real)
    if is_url(str(path)):
        return
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder of shards or images")
    if model is not None:
        corpus, _ = judged_set(
            path, labels=labels, real=real, classes=model.classes, outputs=model.model.num_classes
        )
        if reassessed is not None:
            names = [corpus.name(shard, i) for shard, count in enumerate(corpus.counts) for i in range(count)]
            real_labels_of(names, classes=corpus.classes, real=reassessed, origin=str(path))


def judged_set(
    path: Path | str, *, labels: Path | None, real: Path | None, classes: list[str] | None, outputs: int
) -> tuple[SampleSource, list[int] | None]:
    """Open an evaluation set, and return the model's outputs that it is judged by, None for all in order.

    Raises:
        UserError: it has a class that the model does not know, or beside `real` several labels per image.
    """
    corpus = open_evaluation_set(path, labels=labels, classes=classes)
    if classes is None and len(corpus.classes) != outputs:
        raise UserError(f"{path}: has {len(corpus.classes)} classes, the model {outputs} without names")
    columns = evaluation_columns(classes, corpus.classes, origin=str(path))
    if real is not None:
        check_single_labels([corpus], needed_by="--real judges one guess per image")
    return corpus, columns


def tell_unlabelled(folder: Path, *, names: list[str], labels: Path) -> None:
    """Say how many files of a flat folder the label file leaves out, and that they are not evaluated."""
    known = set(names)
    found = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    unknown = sorted(name for name in found if name not in known and not name.startswith("."))
    if unknown:
        print(
            f"warning: {labels} has no label for {len(unknown):,} of {len(found):,} files in {folder}; "
            f"these are not evaluated, the first is {unknown[0][:200]!a}",
            file=sys.stderr,
        )


def open_evaluation_set(
    path: str | Path, *, labels: Path | None = None, classes: list[str] | None = None
) -> SampleSource:
    """Open an evaluation set; `labels` is the file of a flat folder, `classes` what its numbers count.

    Raises:
        UserError: nothing of a known form is there, or the label file is not what it should be.
    """
    if labels is None:
        return open_corpus(path)
    if classes is None:
        raise UserError(f"{labels}: the model carries no class names that its labels could mean")
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    lines = [*_label_lines(labels)]
    if not lines:
        raise UserError(f"{labels}: holds no line; expected NAME LABEL, a label being a class or its number")
    places = match_classes(classes, [label for _, label, _ in lines])
    numbers = [
        _number(label, origin=origin, classes=len(classes)) if place is None else place
        for (_, label, origin), place in zip(lines, places, strict=True)
    ]
    files = [(name, number) for (name, _, _), number in zip(lines, numbers, strict=True)]
    return FolderCorpus(folder, classes=classes, files=files)


def _label_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each line's name and label, and where it stands."""
    seen: set[str] = set()
    for row, line in enumerate(read_text(path, most=_MAX_LABEL_FILE_BYTES).splitlines(), start=1):
        name, _, label = line.strip().partition(" ")
        if "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{path}:{row}: {name[:200]!a} leads out of the folder")
        if name in seen:
            raise UserError(f"{path}:{row}: {name[:200]!a} has a label already; an image counts once")
        if name:
            seen.add(name)
            yield name, label.strip(), f"{path}:{row}"


def _number(label: str, *, origin: str, classes: int) -> int:
    if not (_NUMBER.fullmatch(label) and int(label) < classes):
        raise UserError(f"{origin}: {label[:60]!a} is neither a class nor a number below {classes}")
    return int(label)


def read_real_labels(path: Path) -> list[list[int]]:
    """Read the reassessed labels of ImageNet's validation set: classes per image, in the set's order.

    Source: Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159; its file real.json.

    Raises:
        UserError: the file is not of that form.
    """
    try:
        rows: Any = json.loads(read_text(path, most=_MAX_LABEL_FILE_BYTES))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not JSON") from None
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(type(label) is int and label >= 0 for label in row) for row in rows
    ):
        raise UserError(f"{path}: expected a list of lists of class numbers, one per validation image")
    return rows


def real_labels_of(
    names: Iterable[str], *, classes: Sequence[str], real: list[list[int]], origin: str
) -> list[list[int]]:
    """Return the reassessed labels of images by name.

    Args:
        names: hold ILSVRC2012_val_00000001 and so on.
        classes: that the images are judged among.
        real: class numbers per image of the validation set.
        origin: of the images, for messages.

    Raises:
        UserError: a name holds no number of a validation image, or these are not the classes that labels
            count.
    """
    most = max((label for row in real for label in row), default=0)
    if most >= len(classes) or len(classes) > _REAL_CLASSES:
        raise UserError(
            f"{origin}: ReaL labels count {_REAL_CLASSES:,} classes of ImageNet-1K, up to {most}; this set "
            f"is judged among {len(classes):,}"
        )
    rows = []
    for name in names:
        found = _VALIDATION_NUMBER.search(name)
        if not found or not 1 <= int(found[1]) <= len(real):
            raise UserError(
                f"{origin}: {name!r} is not an image of ImageNet's validation set (ILSVRC2012_val_…)"
            )
        rows.append(real[int(found[1]) - 1])
    return rows


def real_accuracy(
    predictions: Predictions, *, names: list[str], classes: list[str], real: list[list[int]], origin: str
) -> float:
    """Return the share of first guesses among an image's reassessed labels; images without any are left out.

    Args:
        predictions: guesses among `classes`.
        names: of the predicted samples.
        classes: ImageNet-1K's; by their WordNet ids where they have them, for these count in that order.
        real, origin: as in `real_labels_of`, which raises the same.
    """
    rows = real_labels_of(names, classes=classes, real=real, origin=origin)
    keys = [class_key(name) for name in classes]
    numbers = {key: number for number, key in enumerate(sorted(keys))}
    have_ids = all(is_wordnet_id(key) for key in keys)
    hits = judged = 0
    for allowed, guess in zip(rows, predictions.guess, strict=True):
        judged += bool(allowed)
        number = numbers[keys[guess]] if have_ids and guess >= 0 else int(guess)
        hits += number in allowed
    return hits / max(judged, 1)
