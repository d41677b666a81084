"""Small photographs that differ by class in colour and stripes, as an image folder; and runs over them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ("amber", "blue", "green")
TINY = {
    "model": "{name: coatnet_0, depths: [1,1,1,1,1], widths: [8,8,16,32,32]}",
    "norm.momentum": "0.1",
    "augment.image_size": "32",
    "optimizer.learning_rate": "2e-3",
    "train.duration": "12 steps",
    "train.global_batch": "16",
    "train.micro_batch": "8",
    "evaluate.every": "6 steps",
    "save.every": "2 steps",
    "stochastic_depth": "0.1",
    "augment.mixup": "0.2",
    "ema": "0.9",
}


def write_images(folder: Path, *, per_class: int, seed: int, side: int = 48) -> Path:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 90, size=(side, side, 3), dtype=np.uint8)
            pixels[:: label + 2, :, label] += 150
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_images(root / "train", per_class=24, seed=1)
    write_images(root / "validation", per_class=7, seed=2)
    return root


@pytest.fixture(scope="session")
def arguments(photos: Path) -> Callable[..., list[str]]:
    """Return what stands behind `coatnet finetune` for a directory: the tiny settings, and others."""

    def words(directory: Path, *, init: str = "null", ranks: int = 1, **changes: str) -> list[str]:
        values = {
            **TINY,
            "init": init,
            "run.directory": str(directory),
            "data.train": f"[{{path: {photos / 'train'}}}]",
            "data.evaluate": str(photos / "validation"),
            "launch.ranks": str(ranks),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        config = directory.parent / f"{directory.name}.yaml"
        config.write_text("{}\n")
        settings = [f"{key}={value}" for key, value in values.items() if value is not None]
        return [str(config), *settings]

    return words


@pytest.fixture(scope="session")
def command(arguments: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return the whole command with these arguments, as it stands behind `coatnet`."""

    def words(directory: Path, **given: Any) -> list[str]:
        return ["finetune", *arguments(directory, **given)]

    return words


@pytest.fixture(scope="session")
def coatnet(on_ranks: Callable[..., list[Any]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end."""

    def run(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        typed = list(map(str, words))
        (found,) = on_ranks("typed", world_size=1, words=typed)
        done = subprocess.CompletedProcess(typed, **found)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="session")
def trained(
    arguments: Callable[..., list[str]],
    on_ranks: Callable[..., list[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run, trained from scratch without interruption."""
    directory = tmp_path_factory.mktemp("runs") / "trained"
    on_ranks("finetune_run", world_size=1, arguments=arguments(directory))
    return directory
