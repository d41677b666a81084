"""Kill one rank of the quickstart's pretraining several times, by the machinery of benchmarks/kills.py.

Prints that campaign's JSON with two keys more: the largest gap between a run's time account and its wall
time, and how many lives the runs had. Arguments: epochs (the quickstart's own are 30), kills, seed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import kills
from warm import warm_up

from coatnet.config import load_config
from coatnet.quickstart.digits import write_digits
from coatnet.runtime.lives import add_up, read_lives
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "quickstart_pretrain.yaml"


def write_images(folder: Path) -> None:
    digits = folder.with_name("digits")
    write_digits(digits)
    (digits / "pretrain" / "train").rename(folder)


def main(epochs: int, count: int, seed: int) -> None:
    config = load_config(PretrainConfig, CONFIG, overrides=["data.train=[{path: shards}]"])
    kills.write_images = write_images
    kills.TARGETS = ("rank 0", "rank 1")
    kills.GLOBAL_BATCH = config.train.global_batch
    kills.CONFIG = f"extends: {CONFIG}\ntrain: {{duration: {epochs} epochs}}\nsave: {{every: 1 seconds}}\n"
    with tempfile.TemporaryDirectory(prefix="quickstart-kills-") as name:
        folder = Path(name)
        warm_up()
        kills.STEPS = round(epochs * 718 / kills.GLOBAL_BATCH)
        result = kills.campaign(folder, kills=count, seed=seed, start=kills.start_warm, quiet=True)
        errors, lives = [], 0
        for account in folder.glob("run-*/account"):
            found = read_lives(account)
            wall = found[-1].ended - found[0].began
            errors.append(abs(sum(add_up(read_lives(account)).values()) - wall) / wall)
            lives += len(found)
    print(json.dumps({**result, "account_error": max(errors), "lives": lives}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
