"""Start a pretraining run: its ranks on this machine, or this process as one of them. Knows no model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from coatnet.config import load_config
from coatnet.runtime.launch import device_count, run_ranks
from coatnet.runtime.lease import Lease
from coatnet.runtime.ranks import already_launched
from pretrain.config import PretrainConfig


def launch(path: str, overrides: Sequence[str], *, force: bool) -> int:
    """Run the ranks and return the exit status.

    Raises:
        UserError: the config is wrong, or another job holds the run directory.
    """
    config = load_config(PretrainConfig, path, overrides=overrides)
    arguments = [path, *overrides, *(["--force"] if force else [])]
    if already_launched():
        from pretrain.worker import main

        main(arguments)
        return 0
    directory = Path(config.run.directory)
    # Asked here as well, so that a second start ends at once and not after torch has been loaded.
    Lease.require_free(directory)
    logs, ranks = directory / "logs", config.launch.ranks or device_count()
    print(f"{directory}: starting {ranks} ranks; all but the first write to {logs}", file=sys.stderr)
    return run_ranks("pretrain.worker", arguments, ranks=ranks, log_directory=logs)
