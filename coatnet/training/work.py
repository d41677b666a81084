"""What every rank of a run executes, from its start to its end. Loads torch only where signals can wait."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from coatnet.config import to_yaml
from coatnet.runtime.lease import Lease
from coatnet.runtime.opening import opened_run
from coatnet.runtime.ranks import Ranks, already_launched
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag


class Begin(Protocol):
    """Puts a stage's run together: a `TrainingRun`."""

    def __call__(
        self, config: Any, *, ranks: Ranks, run: RunDirectory, lease: Lease | None, digest: str
    ) -> Any: ...


def work(
    config: Any, begin: Begin, *, digest: str, decoder: str, force: bool = False, alone: bool = False
) -> None:
    """Join the ranks, train, leave a marker.

    Args:
        config: a root schema with the sections run and launch.
        begin: called once the directory is this run's.
        digest: what must not change under a run.
        decoder: which one the images are read by.
        force: take a run over whose config was another.
        alone: go on without a process group where nobody launched one.
    """
    run = RunDirectory(config.run.directory)
    with StopFlag() as stop:
        start = Ranks.single if alone and not already_launched() else Ranks.start
        ranks = start(deterministic=config.launch.deterministic)
        from coatnet.model import rows  # loads torch

        about = {"decoder": decoder, "network": rows.name(device_type=ranks.device_type)}
        with opened_run(
            run, ranks=ranks, config_yaml=to_yaml(config), digest=digest, force=force, **about
        ) as lease:
            if run.marker("done") is not None:
                pass
            elif not ranks.any(stop.requested):
                from coatnet.training.loop import train_to_end

                train_to_end(begin(config, ranks=ranks, run=run, lease=lease, digest=digest), stop)
            elif ranks.is_main:  # told while torch was loading
                run.mark("stopped", reason=stop.reason)
                print(f"{run.path}: stopped before it began; the same command goes on", file=sys.stderr)
        ranks.stop()
