"""`coatnet quickstart`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coatnet.config.plain_text import json_text

_DIRECTORY, _CONFIGS = Path("runs/quickstart"), Path("configs")


def quickstart(
    directory: Annotated[Path, typer.Option(help="Where data, runs and the summary go.")] = _DIRECTORY,
    configs: Annotated[Path, typer.Option(help="Folder with the quickstart's two configs.")] = _CONFIGS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier quickstart in DIRECTORY first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Shard, pretrain, interrupt, resume, fine-tune, evaluate, export: five minutes on two cores.

    What is complete is not done again.

    Example: coatnet quickstart --directory runs/quickstart
    """
    from coatnet.quickstart.journey import run_quickstart
    from coatnet.quickstart.table import print_summary

    summary = run_quickstart(directory, configs=configs, fresh=fresh, quiet=as_json)
    if as_json:
        print(json_text(summary, indent=2))
    else:
        print_summary(summary)
