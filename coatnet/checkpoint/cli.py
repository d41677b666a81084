"""`coatnet inspect checkpoint`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coatnet.config.plain_text import json_text

if TYPE_CHECKING:
    from coatnet.checkpoint.reader import Checkpoint


def inspect_checkpoint(
    directory: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory (its newest).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not verify the data.")] = False,
) -> None:
    """Print what a checkpoint holds, and verify every byte of it.

    Example: coatnet inspect checkpoint runs/quickstart/pretrain
    """
    import time

    place = _locate(directory)
    from coatnet.checkpoint.reader import Checkpoint  # loads torch

    checkpoint = Checkpoint(place)
    began = time.monotonic()
    if not quick:
        checkpoint.verify()
    description = _describe(checkpoint)
    description["verified"] = not quick
    description["verify_seconds"] = round(time.monotonic() - began, 3)
    if as_json:
        print(json_text(description, indent=2))
    else:
        _print(description)


def _locate(directory: Path) -> Path:
    """Accept a run directory too: its newest committed checkpoint is meant."""
    from coatnet.checkpoint.inspection import MANIFEST, checkpoints_of
    from coatnet.config import UserError
    from coatnet.runtime.run_directory import RunDirectory

    if (directory / MANIFEST).exists():
        return checkpoints_of(directory)[0]
    found = RunDirectory(directory).find_checkpoints()
    if not found:
        raise UserError(f"{directory}: neither a checkpoint nor a run directory with one")
    return found[0]


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    from math import prod

    from coatnet.checkpoint.fragments import KINDS

    kinds = {}
    for kind in KINDS:
        names = checkpoint.names(kind)
        if names:
            elements = sum(prod(checkpoint.shape(kind, name)) for name in names)
            kinds[kind] = {"tensors": len(names), "elements": elements}
    return {
        "directory": str(checkpoint.directory),
        "step": checkpoint.step,
        "samples_seen": checkpoint.samples_seen,
        "world_size": checkpoint.manifest.world_size,
        "epoch": checkpoint.manifest.epoch,
        "bytes": checkpoint.bytes,
        "kinds": kinds,
        "facts": checkpoint.facts,
    }


def _print(description: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from coatnet.runtime.console import make_console

    console = make_console()
    table = Table(title=escape(description["directory"]), title_justify="left", box=None, show_header=False)
    numbers = {
        "step": "step",
        "samples_seen": "samples seen",
        "world_size": "world size",
        "epoch": "lease's epoch",
    }
    for key, name in numbers.items():
        table.add_row(name, f"{description[key]:,}")
    table.add_row("size", f"{description['bytes'] / 2**20:,.1f} MiB")
    for kind, counted in description["kinds"].items():
        table.add_row(kind, f"{counted['tensors']:,} tensors, {counted['elements']:,} elements")
    for key, value in description["facts"].items():
        text = json_text(value, ensure_ascii=False)
        table.add_row(escape(key), escape(text if len(text) <= 100 else f"{text[:97]}…"))
    verdict = f"every byte verified in {description['verify_seconds']:.2f} s"
    table.add_row("verified", verdict if description["verified"] else "[yellow]not asked for[/yellow]")
    console.print(table)
