"""Start a pretraining run: its ranks on this machine, or this process as one of them. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coatnet.checkpoint.inspection import check_manifest_size
from coatnet.config import load_config
from coatnet.runtime.launch import device_count, launch_run
from coatnet.runtime.lease import Lease
from coatnet.runtime.rendezvous import already_launched
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.first_look import look_at_data
from pretrain.batches import group_images, make_calendar
from pretrain.config import PretrainConfig


def launch(path: str, overrides: Sequence[str], *, force: bool) -> int:
    """Run the ranks and return the exit status.

    Raises:
        UserError: the config is wrong, or another job holds the run directory.
    """
    config = load_config(PretrainConfig, path, overrides=overrides)
    if not already_launched():
        _look(config, force=force)
    arguments = [path, *overrides, *(["--force"] if force else [])]
    directory, ranks = Path(config.run.directory), config.launch.ranks
    return launch_run("pretrain.worker", arguments, directory=directory, ranks=ranks)


def _look(config: PretrainConfig, *, force: bool) -> None:
    """Refuse what the ranks would refuse, without the seconds that they need to start."""
    run = RunDirectory(config.run.directory)
    Lease.require_free(run.path)
    run.check_config(config, force=force)
    look_at_data(config, make_calendar=make_calendar, averaged=bool(config.ema))
    ranks = config.launch.ranks or device_count()
    check_manifest_size(config.model, ranks=ranks, stage=config.zero.stage, averaged=bool(config.ema))
    group_images(config, world_size=ranks, settled=run.settled_group_images)
