"""What every rank of a pretraining run executes: `python -m pretrain.worker CONFIG key=value… [--force]`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from coatnet.config import UserError, load_config, to_yaml
from coatnet.runtime.environment import describe_environment
from coatnet.runtime.lease import Lease
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.runtime.stop import StopFlag
from pretrain.config import PretrainConfig, run_digest

FORCE = "--force"


def main(arguments: Sequence[str]) -> None:
    """Join the ranks, train, leave a marker."""
    force = FORCE in arguments
    path, *overrides = [argument for argument in arguments if argument != FORCE]
    config = load_config(PretrainConfig, path, overrides=overrides)
    with StopFlag() as stop:
        ranks = Ranks.start()
        run = RunDirectory(config.run.directory)
        digest = run_digest(config)
        lease = _open_run(run, config, digest=digest, ranks=ranks, force=force)
        try:
            _train(config, ranks=ranks, run=run, lease=lease, digest=digest, stop=stop)
        finally:
            if lease is not None:
                lease.release()
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
    if ranks.is_main:
        if state.samples_seen >= parts.calendar.total:
            parts.finish(state)
            run.mark("done", samples_seen=state.samples_seen)
        else:
            run.mark("stopped", samples_seen=state.samples_seen, reason=stop.reason)
    ranks.barrier()


def _open_run(
    run: RunDirectory, config: PretrainConfig, *, digest: str, ranks: Ranks, force: bool
) -> Lease | None:
    """Take the lease and write the config, on the main rank; an error there ends all ranks alike."""
    lease, trouble = None, None
    if ranks.is_main:
        try:
            lease = Lease.acquire(run.path)
            run.create_or_resume(to_yaml(config), digest=digest, force=force)
            run.clear("stopped")
            write_atomically(run.environment, json.dumps(_environment(ranks), indent=2) + "\n")
        except UserError as error:
            trouble = str(error)
    trouble = ranks.broadcast(trouble)
    if trouble is not None:
        if lease is not None:
            lease.release()
        raise UserError(trouble)
    return lease


def _environment(ranks: Ranks) -> dict[str, object]:
    from data_pipeline.decode import backend_name

    return describe_environment(
        device=ranks.device_type, world_size=ranks.world_size, decoder=backend_name()
    )


def _exit_with(error: UserError) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as mistake:
        _exit_with(mistake)
