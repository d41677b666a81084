"""Take a bad step of a run again, on one device, and compare: is it the data and the weights, or the machine?

The worker of `coatnet replay`. Writes nothing into the run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coatnet.checkpoint.reader import Checkpoint
from coatnet.config.plain_text import json_number
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.endings import run_rank
from coatnet.runtime.progress import progress
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.training.earlier import read_earlier
from pretrain.assembly import Assembly, assemble
from pretrain.bundles import Bundle, read_bundle, read_config
from pretrain.engine.start import load_deepspeed
from pretrain.sections import TuneConfig
from pretrain.state import State

# Another number of ranks adds up in another order; bf16 keeps three digits. One rank alone is exact.
_TOLERANCES = {"fp32": 1e-4, "autocast": 2e-2, "bf16": 2e-2}
_NAMED_SAMPLES = 8


def main(arguments: Sequence[str]) -> None:
    """Replay the bundle of a folder, with overrides of its config, and print the comparison as JSON."""
    folder = Path(arguments[0])
    ranks = Ranks.start()
    load_deepspeed(extensions=str(folder / "extensions"))
    print(json.dumps(replay(folder, ranks=ranks, overrides=arguments[1:])))
    ranks.stop()


def replay(folder: Path, *, ranks: Ranks, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Rerun from the bundle's checkpoint through its step and return what was observed and what came now.

    `overrides`: of the run's config, what may change under it, as key=value.

    Raises:
        UserError: no bundle, or the data are no longer those of the run.
        CheckpointError: the bundle's checkpoint is damaged.
    """
    bundle = read_bundle(folder)
    config = read_config(folder, overrides=overrides)
    config = replace(config, train=replace(config.train, micro_batch=bundle.micro_batch), tune=TuneConfig())
    checkpoint = Checkpoint(folder / "checkpoint")
    checkpoint.verify()
    facts = checkpoint.facts
    account = TimeAccount(folder / "account", rank=0, life=0)  # never written
    assembly = assemble(config, ranks=ranks, account=account, group_images=facts["group_images"])
    assembly.stream.check(bundle.data)
    state = State(**facts["progress"])
    assembly.engine.state.load(checkpoint, applied_steps=state.applied_steps)
    if state.samples_seen > bundle.samples_seen:  # saved after a refused step, which changed nothing
        state.samples_seen, state.step = bundle.samples_seen, bundle.step - 1
    recorded = _recorded(folder.parent.parent, after=state.samples_seen)
    rows, samples = _rerun(assembly, state, bundle, recorded=recorded)
    tolerance = _TOLERANCES[config.precision]
    return {
        "step": bundle.step,
        "event": bundle.event,
        "positions": [bundle.samples_seen, bundle.samples_seen + bundle.samples],
        "checkpoint_step": checkpoint.step,
        "device": str(ranks.device),
        "observed": {"loss": bundle.loss, "gradient_norm": bundle.gradient_norm},
        "steps": rows,
        "worst_samples": samples,
        "world_size": bundle.world_size,
        "tolerance": tolerance,
        "equal_bits": _agrees(bundle, rows[-1], tolerance=0.0),
        "reproduced": _agrees(bundle, rows[-1], tolerance=tolerance),
    }


def _rerun(
    assembly: Assembly, state: State, bundle: Bundle, *, recorded: Mapping[int, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    steps = bundle.step - state.step
    with progress(steps, f"replay step {bundle.step}", "steps", enabled=sys.stderr.isatty()) as bar:
        for batch in assembly.stream.follow(state):
            before = state.samples_seen
            if before == bundle.samples_seen:
                samples = _worst(assembly, batch)
            result = assembly.trainer.step(
                batch,
                samples_seen=before,
                learning_rate=assembly.calendar.learning_rate(before + batch.step_samples(1)),
            )
            state.advance(**result.counts())
            rows.append(
                {
                    "step": state.step,
                    "samples_seen": state.samples_seen,
                    "loss": json_number(result.loss),
                    "gradient_norm": json_number(result.gradient_norm),
                    "recorded_loss": recorded.get(state.samples_seen),
                }
            )
            bar.advance()
            if before >= bundle.samples_seen:
                return rows, samples
    raise AssertionError("the stream ended before the step")


def _worst(assembly: Assembly, batch: Any) -> list[dict[str, Any]]:
    """Name the step's samples of the highest loss, by the weights before it."""
    losses = assembly.trainer.sample_losses(batch)[: batch.step_samples(1)]  # what fills a step comes last
    ranked = torch.where(torch.isfinite(losses), losses, torch.inf)
    return [
        {
            "position": int(batch.positions[row]),
            "name": assembly.stream.name(int(batch.positions[row])),
            "loss": json_number(float(losses[row])),
        }
        for row in ranked.argsort(descending=True)[:_NAMED_SAMPLES].tolist()
    ]


def _agrees(bundle: Bundle, row: Mapping[str, Any], *, tolerance: float) -> bool:
    """Compare the losses, and the gradients where the run did not refuse the step for its loss."""
    pairs = [(float(bundle.loss), float(row["loss"]))]
    if bundle.event != "skipped_spike":
        pairs.append((float(bundle.gradient_norm), float(row["gradient_norm"])))
    return all(
        math.isclose(one, other, rel_tol=tolerance)
        if math.isfinite(one) and math.isfinite(other)
        else math.isfinite(one) == math.isfinite(other)
        for one, other in pairs
    )


def _recorded(run: Path, *, after: int) -> dict[int, float]:
    rows = read_earlier(RunDirectory(run).metrics, after=after).ahead
    return {int(row["samples_seen"]): float(row["train/loss"]) for row in rows if "train/loss" in row}


if __name__ == "__main__":
    run_rank(main)
