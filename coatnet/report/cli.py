"""`coatnet report`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coatnet.config.plain_text import json_text


def report(
    run: Annotated[Path, typer.Argument(help="A run directory; the run may still be going.")],
    destination: Annotated[
        Path | None, typer.Option(help="Folder for the report, where RUN may only be read; default: RUN.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's figures instead.")] = False,
) -> None:
    """Write RUN/report.html (one self-contained page) and RUN/report.md.

    Example: coatnet report runs/quickstart/pretrain
    """
    from coatnet.report.record import read_run
    from coatnet.report.write import figures, write_report

    if as_json:
        print(json_text(figures(read_run(run)), indent=2))
        return
    page = write_report(run, destination=destination)
    typer.echo(f"{page}\n{page.with_suffix('.md')}")
