"""The kinds of sources, told apart by what is there. Each ends as a `Listing`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coatnet.config import UserError
from data_pipeline.folder import list_image_folder
from data_pipeline.index import LABEL
from data_pipeline.sharding.listing import WHOLE_FILE, Listing
from data_pipeline.sharding.payloads import Payloads
from data_pipeline.sharding.table_source import SUFFIXES, list_table
from data_pipeline.sharding.tar_source import list_tars, tars_in
from data_pipeline.sharding.vocabulary import read_classes, read_hierarchy


@dataclass(frozen=True)
class SourceOptions:
    """How a source is understood.

    Attributes:
        classes: a file of class names, one a line, in the order of their numbers.
        hierarchy: a file of lines `parent child`, such as WordNet's is-a file.
        root: the folder that a table's paths are relative to; by default the table's own.
        only: of tars, take only members whose name begins so.
        multi_label: make a corpus of several labels per image, even if each has just one.
    """

    classes: Path | None = None
    hierarchy: Path | None = None
    root: Path | None = None
    only: str = ""
    multi_label: bool = False


def list_source(
    source: Path, options: SourceOptions, *, payloads: Payloads, done: Callable[[int], None]
) -> Listing:
    """List a source's samples: an image folder, a table, a tar, or a folder of tars.

    Args:
        payloads: takes the images that lie in a table.
        done: is told of so many more samples listed.

    Raises:
        UserError: there is nothing of a known kind, or it is malformed.
    """
    classes = None if options.classes is None else read_classes(options.classes)
    multi = options.multi_label
    is_table = source.is_file() and source.suffix.lower() in SUFFIXES
    if options.root is not None and not is_table:
        raise UserError(f"--root is for a table's paths; {source} is not a table ({', '.join(SUFFIXES)})")
    if is_table:
        listing = list_table(
            source, root=options.root, classes=classes, payloads=payloads, multi=multi, done=done
        )
    elif source.is_file() and source.suffix.lower() == ".tar":
        listing = list_tars([source], classes=classes, only=options.only, multi=multi, done=done)
    elif source.is_file():
        raise UserError(
            f"{source}: is of no known kind; allowed: a folder, {', '.join(SUFFIXES)}, .tar (not compressed)"
        )
    elif tars := tars_in(source):
        listing = list_tars(tars, classes=classes, only=options.only, multi=multi, done=done)
    elif options.only:
        raise UserError(f"--only chooses members of tars; {source} holds none")
    else:
        listing = list_folder(source, classes=classes, multi=multi, done=done)
    if options.hierarchy is not None:
        listing.hierarchy = read_hierarchy(options.hierarchy, listing.classes)
    return listing


def list_folder(
    folder: Path, *, classes: list[str] | None, multi: bool, done: Callable[[int], None]
) -> Listing:
    """List an image folder, CLASS/…/file; the classes are its own, or all that are given.

    Raises:
        UserError: as `list_image_folder` does, or a folder is none of the given classes.
    """
    own, files = list_image_folder(folder, done=done)
    numbers = {name: number for number, name in enumerate(classes or own)}
    unknown = next((name for name in own if name not in numbers), None)
    if unknown is not None:
        raise UserError(f"{folder / unknown}: is none of the {len(numbers)} classes of --classes")
    places = [numbers[name] for name in own]
    label = np.array([places[number] for _, number, _ in files], dtype=np.int64)
    rows = np.array([(number, 1.0) for number in label], dtype=LABEL) if multi else None
    return Listing(
        root=folder,
        classes=classes or own,
        files=[path for path, _, _ in files],
        file=np.arange(len(files)),
        offset=np.full(len(files), WHOLE_FILE),
        size=np.array([size for _, _, size in files], dtype=np.int64),
        label=label,
        rows=rows,
        first=np.arange(len(files) + 1) if multi else None,
        source={"kind": "image folder", "path": str(folder)},
    )
