"""Replay bundles: everything needed to take a bad step again on one device. Knows no model.

A bundle is a folder of the run, `replays/step-N`: what was observed, the config, and a checkpoint from before
the step whose files are hard links, so that it costs no space and retention may delete the original.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coatnet.config import UserError, load_config
from coatnet.runtime.run_directory import write_atomically
from pretrain.config import PretrainConfig

CONFIG = "config.yaml"
_PREFIX = "step-"


@dataclass(frozen=True)
class Bundle:
    """A step as the run saw it.

    Attributes:
        event: what the guard made of it.
        step: its number, counted from 1.
        samples_seen: the position where it begins.
        applied_steps: updates of the weights before it.
        loss, gradient_norm: observed, as text where they are not finite.
        micro_batch, world_size: how the run cut it.
        data: the order of samples and its exclusions at that time.
    """

    event: str
    step: int
    samples_seen: int
    samples: int
    applied_steps: int
    applied: bool
    loss: float | str
    gradient_norm: float | str
    micro_batch: int
    world_size: int
    data: dict[str, Any]


def bundle_path(run: Path, step: int) -> Path:
    """Return where a step's bundle lies."""
    return run / "replays" / f"{_PREFIX}{step:08d}"


def find_bundles(run: Path) -> list[int]:
    """Return the steps that have a bundle, oldest first."""
    names = (path.name.removeprefix(_PREFIX) for path in (run / "replays").glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())


def write_bundle(run: Path, bundle: Bundle, *, config: Path, checkpoint: Path) -> Path:
    """Write a bundle whole or not at all and return its folder.

    What a life left that was killed at it is removed: its links would keep a whole checkpoint for ever.
    """
    final = bundle_path(run, bundle.step)
    for left in final.parent.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        (temporary / "checkpoint").mkdir(parents=True)
        for file in sorted(checkpoint.iterdir()):
            _link(file, temporary / "checkpoint" / file.name)
        shutil.copyfile(config, temporary / CONFIG)
        write_atomically(temporary / "bundle.json", json.dumps(asdict(bundle), indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)  # an earlier life came to the same step
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle.

    Raises:
        UserError: the folder holds none.
    """
    try:
        return Bundle(**json.loads((folder / "bundle.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: not a replay bundle ({error})") from None


def read_config(folder: Path, *, overrides: Sequence[str]) -> PretrainConfig:
    """Read a bundle's config, with what may be otherwise by now: where the data lie, and how they are read.

    Raises:
        UserError: it is no config, or an override changes what the step computes.
    """
    file = folder / CONFIG
    config = load_config(PretrainConfig, file, overrides=overrides)
    if config.run_digest() != load_config(PretrainConfig, file).run_digest():
        raise UserError(
            f"{' '.join(overrides)}: makes it another run's step; give only what may change under a run, as "
            "data.train=SHARDS"
        )
    return config


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
