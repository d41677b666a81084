"""Small corpora, made on the spot: an image folder, its shards, and the odd images where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import passing, shard_files
from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

CLASSES = ("ant", "bee", "cat")


def write_images(folder: Path, *, per_class: int, seed: int = 0) -> None:
    """Write JPEGs of different sizes whose pixels all differ."""
    draw = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = draw.integers(20, 60, 2)
            coarse = draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            image.save(folder / name / f"{number:03d}.jpg", quality=90)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that are asked for, and make none."""
    asked: list[float] = []
    monkeypatch.setattr(passing.time, "sleep", asked.append)
    return asked


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 40 images."""
    folder = tmp_path_factory.mktemp("images") / "train"
    write_images(folder, per_class=40)
    return folder


@pytest.fixture(scope="session")
def shard_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in shards of 15; not to be written to."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    shard_corpus(image_folder, folder, options=ShardOptions(shard_samples=15), quiet=True)
    return folder


@pytest.fixture
def fail_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[float], list[OSError]]]:
    """Let the next `times` reads fail with an errno; return the pauses, and the failures to come."""

    def fail(number: int, *, times: int) -> tuple[list[float], list[OSError]]:
        pauses: list[float] = []
        failures = [OSError(number, os.strerror(number))] * times
        real = os.pread

        def pread(*arguments: int) -> bytes:
            if failures:
                raise failures.pop()
            return real(*arguments)

        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(shard_files.time, "sleep", pauses.append)
        return pauses, failures

    return fail
