"""Starts a replay and shows what came of it. Imports no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatnet.config import UserError
from coatnet.config.plain_text import json_text
from coatnet.runtime.launch import free_port
from coatnet.runtime.rendezvous import local_variables
from pretrain.bundles import bundle_path, find_bundles


def run_replay(run: Path, *, step: int | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Replay one bundle in a process of its own and return the comparison.

    `overrides`: of the run's config, as key=value.

    Raises:
        UserError: there is no such bundle, or the replay failed; the message is the replay's own.
    """
    folder = _folder(run, step)
    environment = {**os.environ, **local_variables(0, ranks=1, port=free_port())}
    command = [sys.executable, "-m", "pretrain.replay", str(folder), *overrides]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{folder}: the replay failed with status {done.returncode}; its message is above")
    return json.loads(done.stdout.splitlines()[-1])


def print_replay(found: dict[str, Any], *, as_json: bool) -> None:
    """Print the comparison: steps, the worst samples, the verdict."""
    if as_json:
        print(json_text(found, indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from coatnet.runtime.console import make_console

    console = make_console()
    steps = Table(title=f"step {found['step']} ({found['event']})", title_justify="left")
    for heading in ("step", "loss", "recorded", "gradient norm", "recorded"):
        steps.add_column(heading, justify="right")
    *before, last = found["steps"]
    for row in before[-10:]:
        steps.add_row(str(row["step"]), _number(row["loss"]), _number(row["recorded_loss"]), "", "")
    observed = found["observed"]
    shown = (last["loss"], observed["loss"], last["gradient_norm"], observed["gradient_norm"])
    steps.add_row(str(last["step"]), *map(_number, shown))
    console.print(steps)
    samples = Table(title="its samples of the highest loss", title_justify="left")
    for heading in ("position", "sample", "loss"):
        samples.add_column(heading)
    for sample in found["worst_samples"]:
        samples.add_row(str(sample["position"]), escape(sample["name"]), _number(sample["loss"]))
    console.print(samples)
    console.print(
        f"[green]reproduced[/green]{_how_well(found)}; look at its samples and at the learning rate"
        if found["reproduced"]
        else "[red]not reproduced[/red]: it comes out otherwise here; suspect the machine that took it"
    )


def _how_well(found: dict[str, Any]) -> str:
    if found["equal_bits"]:
        return " to the bit"
    ranks = found["world_size"]
    why = (
        "threads, versions or kernels are others" if ranks == 1 else f"{ranks} ranks add up in another order"
    )
    return f" within {found['tolerance']:g}, since {why}"


def _folder(run: Path, step: int | None) -> Path:
    if (run / "bundle.json").exists():
        return run
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    known = find_bundles(run)
    if not known:
        raise UserError(f"{run}: holds no replay bundle; the guard writes one for a bad step (guard.replays)")
    if step is not None and step not in known:
        raise UserError(f"{run}: no replay bundle of step {step}; there are {', '.join(map(str, known))}")
    return bundle_path(run, known[-1] if step is None else step)


def _number(value: float | str | None) -> str:
    return "–" if value is None else f"{float(value):.6g}"
