"""Tables as sources: CSV, JSON lines or Parquet, an image per row by path or by bytes. Writes no shard."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from coatnet.config import UserError
from data_pipeline.folder import check_parts
from data_pipeline.sharding.listing import WHOLE_FILE, Listing, ListingMaker
from data_pipeline.sharding.payloads import Payloads
from data_pipeline.sharding.vocabulary import RawLabels, parse_labels

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image_path")
_BYTES_COLUMNS = ("bytes", "image_bytes", "image", "jpg", "jpeg")
_LABEL_COLUMNS = ("label", "labels", "class", "classes", "target", "targets")
_PART_COLUMN = "split"
_PARQUET_ROWS = 256
_KNOWN_LABELS = 100_000
_CSV_CELL_BYTES = 1 << 29  # of an image of 256 MB in base64; csv's own limit is 128 kB
_UNFIT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # what no name of a file can hold
_NAMED = 8
_UNUSUAL = re.compile(r"(^|/)\.{0,2}(/|$)")  # what a path library would change: //, ./, ../ and the like


def list_table(
    table: Path,
    *,
    root: Path | None,
    classes: list[str] | None,
    payloads: Payloads,
    multi: bool,
    done: Callable[[int], None],
) -> Listing:
    """List a table's rows; images that lie in the table itself are first copied to `payloads`.

    The columns go by their names: an image in `path` (relative to `root`, by default the table's folder) or
    `bytes` (base64 in CSV and JSON), the label in `label` or `labels`; some other usual names do as well.

    Raises:
        UserError: a column is missing, a row is malformed, a path leads out of the root, or some rows are for
            training and some are not.
    """
    root = root or table.parent
    before = str(root / "x")[:-1]
    parse = lru_cache(_KNOWN_LABELS)(parse_labels)
    made, parts = ListingMaker(done), set[str]()
    for number, row in enumerate(_rows(table), start=1):
        where = f"{table}, row {number}"
        labels = _labels(row, where, parse)
        parts.add(str(row.get(_PART_COLUMN)).lower())
        content, path = _image(row, where)
        if content is None:
            name = _inside(root, path, where)
            made.add(name, before + name, labels, offset=WHOLE_FILE, size=_size(before + name, where))
        else:
            file, begin = payloads.add(content)
            made.add(path or f"row-{number}", file, labels, offset=begin, size=len(content))
    payloads.flush()
    if not len(made):
        raise UserError(f"{table}: holds no rows")
    check_parts(parts, origin=f"{table}, column {_PART_COLUMN}", remedy="make a table of each")
    source = {"kind": "table", "path": str(table)}
    return made.finish(classes=classes, multi=multi, origin=str(table), source=source)


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    suffix = table.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(table)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(table, delimiter="\t" if suffix == ".tsv" else ",")
        else:
            yield from _json_rows(table)
    except UnicodeDecodeError:
        raise UserError(f"{table}: is not UTF-8 text; save it in that encoding") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: {error}") from None


def _json_rows(table: Path) -> Iterator[Any]:
    """Read a row per line.

    Raises:
        ValueError: a line is not JSON; the parser calls each of them the first.
    """
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows = [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from None
            yield from rows


def _csv_rows(table: Path, *, delimiter: str) -> Iterator[dict[str, Any]]:
    """Read rows strictly: else a quote that is not closed swallows rows, and a comma cuts a label short.

    Raises:
        ValueError: two columns are called alike, a row has more cells than columns, or quotes are astray.
    """
    csv.field_size_limit(_CSV_CELL_BYTES)
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows: csv.DictReader[Any] = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            names = [name for name in rows.fieldnames or () if name]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two columns are called {twice[0]!r}")
            for row in rows:
                if any(row.pop(None, ())):
                    where = f"line {rows.line_num}"
                    raise ValueError(f"{where}: more cells than columns; quote those that hold {delimiter!r}")
                yield row
        except csv.Error as error:
            raise ValueError(f"after line {rows.line_num}: {error}") from None


def _parquet_rows(table: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{table}: needs pyarrow; pip install 'coatnet[tables]'") from None
    try:
        with ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"{table}: {error}") from None


def _column(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _labels(row: dict[str, Any], where: str, parse_text: Callable[[str], RawLabels]) -> RawLabels:
    """Return a row's labels.

    Args:
        parse_text: gives equal cells one list: a table of millions has a few thousand.

    Raises:
        UserError: it has none, or two columns of them, or they cannot be read.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not a mapping of columns")
    columns = [name for name in _LABEL_COLUMNS if row.get(name) is not None]
    if not columns:
        raise _lacks("label", _LABEL_COLUMNS, row, where)
    if len(columns) > 1:
        raise UserError(f"{where}: columns {' and '.join(columns)} all name labels; keep one")
    column, value = columns[0], row[columns[0]]
    try:
        return parse_text(value) if isinstance(value, str) else parse_labels(value)
    except ValueError as error:
        raise UserError(f"{where}, column {column}: {error}") from None


def _image(row: dict[str, Any], where: str) -> tuple[bytes | None, str]:
    """Return (bytes or None, path) of a row's image."""
    path_column = _column(row, _PATH_COLUMNS)
    path = str(row[path_column]) if path_column else ""
    column = _column(row, _BYTES_COLUMNS)
    value = row[column] if column else None
    if isinstance(value, dict):  # the form of Hugging Face's image columns
        path = str(value.get("path") or path)
        value = value.get("bytes")
    if _UNFIT.search(path):
        raise UserError(f"{where}: the path {path!a} is none that a file can have")
    if isinstance(value, bytes):
        return value, path
    if isinstance(value, str) and not path:
        try:
            return base64.b64decode(value, validate=True), path
        except ValueError:
            raise UserError(
                f"{where}, column {column}: is not base64; a path belongs in a column path"
            ) from None
    if not path:
        raise _lacks("image", (*_PATH_COLUMNS, *_BYTES_COLUMNS), row, where)
    return None, path


def _lacks(what: str, expected: tuple[str, ...], row: dict[str, Any], where: str) -> UserError:
    """Say what is expected and what is there: a CSV with semicolons is seen to be one column."""
    there = ", ".join(repr(name) for name in list(row)[:_NAMED])
    return UserError(f"{where}: has no {what}; expected a column {' or '.join(expected)}, found {there}")


def _inside(root: Path, path: str, where: str) -> str:
    """Refuse a path out of the root: a table may come from anyone."""
    if not _UNUSUAL.search(path):
        return path
    pure = PurePosixPath(path)
    if pure.is_absolute() and pure.is_relative_to(root.as_posix()):
        pure = pure.relative_to(root.as_posix())
    if pure.is_absolute() or ".." in pure.parts:
        raise UserError(f"{where}: the path {path!r} leads out of {root}; allowed: below it (see --root)")
    return str(pure)


def _size(path: str, where: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{where}: {path}: {error.strerror}") from None
