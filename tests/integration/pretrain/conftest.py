"""A folder of images and the run over them that nothing happened to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from tiny_runs import arguments, prepare


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in three classes and a config."""
    folder = tmp_path_factory.mktemp("pretrain")
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(place: Path, on_ranks: Callable[..., list[Any]]) -> Path:
    on_ranks("pretrain_run", world_size=2, arguments=arguments(place, "undisturbed"))
    return place / "undisturbed"
