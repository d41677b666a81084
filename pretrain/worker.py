"""What every rank of a pretraining run executes: `python -m pretrain.worker CONFIG key=value… [--force]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coatnet.config import load_config, to_yaml
from coatnet.runtime.lease import Lease
from coatnet.runtime.opening import opened_run, run_rank
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag
from data_pipeline.decode import backend_name
from pretrain.config import PretrainConfig, run_digest

FORCE = "--force"


def main(arguments: Sequence[str]) -> None:
    """Join the ranks, train, leave a marker."""
    force = FORCE in arguments
    path, *overrides = [argument for argument in arguments if argument != FORCE]
    config = load_config(PretrainConfig, path, overrides=overrides)
    with StopFlag() as stop:
        ranks = Ranks.start(deterministic=config.launch.deterministic)
        run = RunDirectory(config.run.directory)
        digest = run_digest(config)
        from coatnet.model import rows  # loads torch

        with opened_run(
            run,
            ranks=ranks,
            config_yaml=to_yaml(config),
            digest=digest,
            force=force,
            decoder=backend_name(config.data.decoder),
            network=rows.name(device_type=ranks.device_type),
        ) as lease:
            _train(config, ranks=ranks, run=run, lease=lease, digest=digest, stop=stop)
        ranks.stop()


def _train(
    config: PretrainConfig,
    *,
    ranks: Ranks,
    run: RunDirectory,
    lease: Lease | None,
    digest: str,
    stop: StopFlag,
) -> None:
    if run.marker("done") is not None:
        return
    if ranks.any(stop.requested):  # told while torch was loading
        if ranks.is_main:
            run.mark("stopped", reason=stop.reason)
            print(f"{run.path}: stopped before it began; the same command goes on", file=sys.stderr)
        return
    from pretrain.engine.start import load_deepspeed
    from pretrain.loop import train
    from pretrain.parts import Parts

    load_deepspeed(extensions=str(run.path / "extensions"))
    parts = Parts(config, ranks=ranks, run=run, lease=lease, digest=digest)
    state = None
    try:
        state = train(parts, stop)
    finally:
        parts.close(state)
    finished = state.samples_seen >= parts.calendar.total
    if finished:
        parts.checkpoints.require(state)
    if ranks.is_main:
        if finished:
            parts.finish(state)
            run.mark("done", samples_seen=state.samples_seen)
        else:
            run.mark("stopped", samples_seen=state.samples_seen, reason=stop.reason)
            parts.recorder.say(
                f"stopped and saved after {state.samples_seen:,} images; the same command goes on from there"
            )
    ranks.barrier()


if __name__ == "__main__":
    run_rank(main)
