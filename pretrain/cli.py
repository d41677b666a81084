"""`coatnet pretrain` and `coatnet replay`. Imports nothing heavy at the top."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from coatnet.config.keys import keys_option
from coatnet.runtime.stop import held_signals


def _schema() -> type:
    from pretrain.config import PretrainConfig

    return PretrainConfig


def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML config.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value …; see --keys.")] = None,
    keys: Annotated[bool, keys_option(_schema)] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume although the config has changed.")] = False,
) -> None:
    """Pretrain a model, or resume a run that was stopped or killed or lost a node.

    Example: coatnet pretrain configs/pretrain/imagenet_1k_coatnet_0.yaml \\
    data.train=shards/train data.evaluate=shards/validation \\
    run.directory=runs/first
    """
    with held_signals():
        from pretrain.launch import launch

        status = launch(str(config), overrides or [], force=force)
    sys.exit(status)


def replay(
    run: Annotated[Path, typer.Argument(help="A run directory, or one bundle in its folder replays/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value …, where the data lie elsewhere by now.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which step; default: the newest bundle.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Take a bad step of a run again on this machine, on one device, and compare with what the run saw.

    Exits with 1 when the step comes out otherwise: then the machine is to be suspected, not the data.

    Example: coatnet replay runs/first --step 1200
    """
    from pretrain.replay_table import print_replay, run_replay

    found = run_replay(run, step=step, overrides=overrides or [])
    print_replay(found, as_json=as_json)
    raise typer.Exit(0 if found["reproduced"] else 1)
