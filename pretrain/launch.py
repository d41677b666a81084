"""Start a pretraining run: its ranks on this machine, or this process as one of them. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coatnet.config import load_config
from coatnet.runtime.launch import launch_run
from pretrain.config import PretrainConfig


def launch(path: str, overrides: Sequence[str], *, force: bool) -> int:
    """Run the ranks and return the exit status.

    Raises:
        UserError: the config is wrong, or another job holds the run directory.
    """
    config = load_config(PretrainConfig, path, overrides=overrides)
    arguments = [path, *overrides, *(["--force"] if force else [])]
    directory, ranks = Path(config.run.directory), config.launch.ranks
    return launch_run("pretrain.worker", arguments, directory=directory, ranks=ranks)
