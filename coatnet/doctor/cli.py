"""`coatnet doctor`. Imports nothing heavy."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine: versions, devices, decoder, limits. Exits with 1 when something would fail.

    Example: coatnet doctor
    """
    from coatnet.doctor.checks import run_checks

    findings = run_checks()
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        _print(findings)
    if any(finding["status"] == "fail" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[dict[str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from coatnet.runtime.console import make_console

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("check", "", "what was found", box=None)
    for finding in findings:
        colour = colours[finding["status"]]
        status = f"[{colour}]{finding['status']}[/{colour}]"
        table.add_row(escape(finding["name"]), status, escape(finding["detail"]))
    make_console().print(table)
