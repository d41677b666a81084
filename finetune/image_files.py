"""Image files: found, bounded, looked at before a model is loaded; and the table of what they show.

Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from coatnet.config import UserError
from coatnet.config.plain_text import plain
from coatnet.runtime.console import make_console
from data_pipeline.decode import DecodeError, probe
from data_pipeline.decode.image_file import read_image_file


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files among paths and below folders.

    Raises:
        UserError: a path does not exist, or a folder holds no files.
    """
    return [file for path in paths for file in _files(path)]


def refused_images(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a row with an `error` per file if each is refused by its header alone, else nothing."""
    rows = []
    for file in files:
        try:
            probe(read_image_file(file))
        except (OSError, DecodeError) as error:
            # Without its own words a failed call's text names the file once more.
            said = getattr(error, "strerror", None) or str(error)
            rows.append({"image": str(file), "error": said})
        else:
            return []
    return rows


def print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of what was predicted; before it, on stderr, a line for each image that was refused."""
    table = Table(title="predictions", title_justify="left")
    for heading in ("image", "class", "probability"):
        table.add_column(heading, justify="right" if heading == "probability" else "left", overflow="fold")
    for row in rows:
        if "error" in row:
            print(plain(f"{row['image']}: {row['error']}"), file=sys.stderr)
        for place, guess in enumerate(row.get("guesses", [])):
            image = "" if place else escape(plain(row["image"]))
            table.add_row(image, escape(guess["class"]), f"{guess['probability']:.1%}")
    if table.row_count:
        make_console().print(table)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        below = (each for each in path.rglob("*") if each.is_file())
        found = sorted(each for each in below if "/." not in f"/{each.relative_to(path).as_posix()}")
        if not found:
            raise UserError(f"{path}: holds no file")
        yield from found
    elif path.exists():
        yield path
    else:
        raise UserError(f"{path}: no such image or folder")
