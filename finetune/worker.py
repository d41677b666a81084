"""What every rank of a fine-tuning run executes: `python -m finetune.worker CONFIG key=value…`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatnet.config import load_config
from coatnet.runtime.beginning import lease_early, loading
from coatnet.runtime.endings import run_rank
from data_pipeline.decode import backend_name
from finetune.config import FinetuneConfig


def main(arguments: Sequence[str]) -> None:
    """Join the ranks, train, leave a marker."""
    config = load_config(FinetuneConfig, arguments[0] or None, overrides=arguments[1:])
    decoder, directory = backend_name(config.data.decoder), Path(config.run.directory)
    lease = lease_early(directory)
    with loading("torch", directory):
        from coatnet.training.execute import execute

    execute(config, _make_run, decoder=decoder, lease=lease, alone=True)


def _make_run(config: FinetuneConfig, **parts: Any) -> Any:
    from finetune.run import FinetuneRun

    return FinetuneRun(config, **parts)


if __name__ == "__main__":
    run_rank(main)
