"""`coatnet pretrain`. Imports nothing heavy at the top."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML config.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value …")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on in the run directory although the config has changed.")
    ] = False,
) -> None:
    """Pretrain a model, or go on with a run that was stopped, killed or lost a node.

    Example: coatnet pretrain configs/pretrain/imagenet_1k_coatnet_0.yaml "data.train=[{path: shards/train}]"
    data.evaluate=shards/validation run.directory=runs/first launch.ranks=2
    """
    from pretrain.launch import launch

    sys.exit(launch(str(config), overrides or [], force=force))
