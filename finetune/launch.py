"""Start a fine-tuning run: its ranks on this machine, or the seeds one after the other. Knows no model."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatnet.checkpoint.classes import matching_rows
from coatnet.checkpoint.inspection import check_frozen, check_init, is_bare
from coatnet.config import UserError, load_config
from coatnet.config.plain_text import json_text
from coatnet.runtime.launch import launch_run
from coatnet.runtime.rendezvous import already_launched
from coatnet.runtime.run_directory import RunDirectory, write_atomically
from coatnet.training.calendar import Calendar
from data_pipeline.first_look import look_at_data
from finetune.config import FinetuneConfig


def launch(path: str, overrides: Sequence[str]) -> int:
    """Train one run per seed and return the exit status; what cannot work is said before torch is loaded.

    Raises:
        UserError: the config is wrong, or several seeds were asked for under srun or torchrun.
    """
    config = load_config(FinetuneConfig, path, overrides=overrides)
    found = check_init(config.init, weights=config.weights, model=config.model)
    if model := found.model if found else config.model:
        check_frozen(config.freeze, model)
    classes = None if already_launched() else look_at_data(config, make_calendar=Calendar.make)
    if config.head.keep_rows == "matching" and config.init and (found or is_bare(Path(config.init))):
        known = found.classes if found else None
        if known is None or classes is not None:
            matching_rows(known, classes or ())
    # A process trains alone only once: accelerate's DeepSpeed and a second seed want a fresh one.
    options: dict[str, Any] = {"ranks": config.launch.ranks, "alone": not config.zero and not config.seeds}
    whole = Path(config.run.directory)
    if not config.seeds:
        RunDirectory(whole).check_config(config)
        return launch_run("finetune.worker", [path, *overrides], directory=whole, **options)
    if already_launched():
        raise UserError("seeds: several runs under srun or torchrun; give `seed` and one job for each")
    directories = {seed: whole / f"seed-{seed}" for seed in config.seeds}
    for seed, directory in directories.items():
        own = [path, *overrides, "seeds=[]", f"seed={seed}", f"run.directory={directory}"]
        status = launch_run("finetune.worker", own, directory=directory, **options)
        if status or not (directory / "done").exists():
            return status
    summary = summarise([json.loads((each / "summary.json").read_text()) for each in directories.values()])
    summary["seeds"] = [*directories]
    write_atomically(whole / "summary.json", json_text(summary, indent=2) + "\n")
    name = next(iter(summary))  # what evaluations are judged by; without any, the seconds
    print(f"{whole}: {name} {summary[name]:.4f} ± {summary['deviation'][name]:.4f}", file=sys.stderr)
    return 0


def summarise(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs' mean figures, and under `deviation` their standard deviations (of a sample)."""
    known = [key for key in summaries[0] if all(isinstance(one[key], float) for one in summaries)]
    values = {key: [one[key] for one in summaries] for key in known}
    return {
        **{key: statistics.fmean(each) for key, each in values.items()},
        "samples": sum(one["samples"] for one in summaries),
        "deviation": {key: statistics.stdev(each) if len(each) > 1 else 0.0 for key, each in values.items()},
        "runs": [{key: one[key] for key in known} for one in summaries],
    }
