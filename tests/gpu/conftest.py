"""What whole runs share: images to train on, and the proof that a kill left no trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coatnet.checkpoint.fragments import KINDS
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks

CLASSES = 3


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once why a test failed: a run that is cut short comes to no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.longreprtext}", flush=True)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images in three classes, brighter from class to class."""
    folder = tmp_path_factory.mktemp("gpu") / "images"
    generator = np.random.default_rng(0)
    for number in range(96):
        label = folder / f"class{number % CLASSES}"
        label.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 96, (80, 80, 3)) + 50 * (number % CLASSES)
        Image.fromarray(pixels.astype(np.uint8)).save(label / f"{number:03d}.jpg")
    return folder


@pytest.fixture(scope="session")
def assert_same_bits() -> Callable[[Path, Path], None]:
    """Return what compares the newest checkpoints of two runs, to the bit."""

    def compare(run: Path, undisturbed: Path) -> None:
        one, other = (
            CheckpointStore(path / "checkpoints", ranks=Ranks()).newest() for path in (run, undisturbed)
        )
        assert one is not None and other is not None
        assert one.facts["progress"] == other.facts["progress"]
        for kind in KINDS:
            assert one.names(kind) == other.names(kind)
            for name in other.names(kind):
                assert torch.equal(one.tensor(kind, name), other.tensor(kind, name)), (kind, name)

    return compare
