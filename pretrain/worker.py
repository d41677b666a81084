"""What every rank of a pretraining run executes: `python -m pretrain.worker CONFIG key=value… [--force]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatnet.checkpoint.inspection import check_manifest_size
from coatnet.config import load_config
from coatnet.runtime.beginning import lease_early, loading
from coatnet.runtime.endings import run_rank
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.decode import backend_name
from pretrain.config import PretrainConfig

FORCE = "--force"


def main(arguments: Sequence[str]) -> None:
    """Join the ranks, train, leave a marker."""
    path, *overrides = [argument for argument in arguments if argument != FORCE]
    config = load_config(PretrainConfig, path, overrides=overrides)
    decoder, force = backend_name(config.data.decoder), FORCE in arguments
    directory = Path(config.run.directory)
    lease = lease_early(directory)
    with loading("torch", directory):
        from coatnet.training.execute import execute

    execute(config, _make_run, decoder=decoder, force=force, lease=lease)


def _make_run(config: PretrainConfig, *, run: RunDirectory, ranks: Any, **parts: Any) -> Any:
    check_manifest_size(
        config.model, ranks=ranks.world_size, stage=config.zero.stage, averaged=bool(config.ema)
    )
    with loading("DeepSpeed", run.path):
        from pretrain.engine.start import load_deepspeed
        from pretrain.run import PretrainRun

        load_deepspeed(extensions=str(run.path / "extensions"))
    return PretrainRun(config, run=run, ranks=ranks, **parts)


if __name__ == "__main__":
    run_rank(main)
