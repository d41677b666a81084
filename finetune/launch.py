"""Start a fine-tuning run: its ranks on this machine, or the seeds one after the other. Knows no model."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatnet.config import UserError, load_config
from coatnet.runtime.launch import device_count, run_ranks
from coatnet.runtime.ranks import already_launched
from coatnet.runtime.run_directory import write_atomically
from finetune.config import FinetuneConfig

_AVERAGED = ("top1", "top5", "best_top1", "seconds")


def launch(path: str, overrides: Sequence[str]) -> int:
    """Train one run per seed and return the exit status.

    Raises:
        UserError: the config is wrong, or several seeds were asked for under srun or torchrun.
    """
    config = load_config(FinetuneConfig, path, overrides=overrides)
    if not config.seeds:
        return _run(config, path, overrides)
    if already_launched():
        raise UserError("seeds: several runs under srun or torchrun; give `seed` and one job for each")
    directories = [Path(config.run.directory) / f"seed-{seed}" for seed in config.seeds]
    for seed, directory in zip(config.seeds, directories, strict=True):
        own = [*overrides, "seeds=[]", f"seed={seed}", f"run.directory={directory}"]
        status = _run(config, path, own)
        if status or not (directory / "done").exists():
            return status
    summary = summarise([json.loads((each / "summary.json").read_text()) for each in directories])
    summary["seeds"] = list(config.seeds)
    write_atomically(Path(config.run.directory) / "summary.json", json.dumps(summary, indent=2) + "\n")
    return 0


def summarise(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs' mean figures, and under `deviation` their standard deviations (of a sample)."""
    known = [key for key in _AVERAGED if all(one[key] is not None for one in summaries)]
    values = {key: [one[key] for one in summaries] for key in known}
    return {
        **{key: statistics.fmean(each) for key, each in values.items()},
        "samples": sum(one["samples"] for one in summaries),
        "deviation": {key: statistics.stdev(each) if len(each) > 1 else 0.0 for key, each in values.items()},
        "runs": [{key: one[key] for key in _AVERAGED} for one in summaries],
    }


def _run(config: FinetuneConfig, path: str, overrides: Sequence[str]) -> int:
    ranks = config.launch.ranks or device_count()
    if already_launched() or (ranks == 1 and not config.zero and not config.seeds):
        from finetune.worker import main

        main([path, *overrides])
        return 0
    return run_ranks("finetune.worker", [path, *overrides], ranks=ranks)
