"""What a run of `benchmarks/histories.py` leaves, and whether another has left the same."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import kills
from histories_drawn import Trial

from cluster.status import read_status
from coatnet.report.write import write_report
from coatnet.runtime.lives import add_up, read_lives
from coatnet.runtime.run_directory import read_lines

_OF_A_LIFE = ("seconds", "runs", "deviation", "config_digest")  # what may differ


class Disturbed(Exception):
    """What a history has changed, or could not come through."""


def compare(trial: Trial, alone: Path, run: Path) -> None:
    """Compare what two runs have left.

    Raises:
        Disturbed: they differ.
    """
    one, other = (left_by(path) for path in (alone, run))
    losses = one.pop("losses"), other.pop("losses")
    # A record that a full disk did not take is missing; where lives overlap a step has several.
    lost = losses[0].keys() - losses[1].keys() if "full disk" not in trial.struck else set()
    bound = 1e-5 if trial.elastic else 0.0
    for at in losses[1]:
        for loss in losses[1][at]:
            if not any(abs(loss - was) <= bound * was for was in losses[0][at]):
                lost |= {at}
    if lost:
        told = [(at, losses[0].get(at), losses[1].get(at)) for at in sorted(lost)]
        raise Disturbed(f"lost or other steps: {told}")
    differing = [key for key in one if one[key] != other.get(key)] if not trial.elastic else []
    if differing or one.keys() != other.keys():
        values = [f"{key}: {one[key]} / {other.get(key)}"[:300] for key in differing[:3]]
        raise Disturbed(f"{len(differing)} of {len(one)} differ: {values}")
    if trial.stage == "pretrain" and not other["every_sample_once"]:
        raise Disturbed("not every sample came once")
    lives = read_lives(run / "account")
    wall, accounted = lives[-1].ended - lives[0].began, sum(add_up(lives).values())
    if abs(accounted - wall) > 0.01 * wall:
        raise Disturbed(f"{accounted} of {wall} s are accounted for")
    write_report(run)
    state = read_status(run, queue=None).state
    if state != "done":
        raise Disturbed(f"its status is {state}")


def left_by(run: Path) -> dict[Any, Any]:
    """Return what a finished run has left that does not tell its history."""
    losses, counts = defaultdict(set), {}
    for row in read_lines(run / "metrics.jsonl"):
        if "train/loss" in row:
            losses[row["samples_seen"]].add(float(row["train/loss"]))
            counts = {key: row[key] for key in ("skipped_steps", "bad_samples")}
    left = kills.final_state(run)
    told = {**left["facts"], **json.loads((run / "summary.json").read_text()), **counts}
    tensors = {key: tensor.numpy(force=True).tobytes() for key, tensor in left["tensors"].items()}
    return {
        **{key: value for key, value in told.items() if key not in _OF_A_LIFE},
        **tensors,
        "losses": losses,
    }
