"""Benchmarks are scripts, of no package: their tests load them by path."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_NOBODY = 65534


# The garbage collector would walk through torch again and again: it waits until all is imported.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector begin, with what tests make."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)  # what a test leaves is little, and what is walked through for it much
    gc.enable()


def pytest_sessionfinish() -> None:
    """Let the process end without a walk through all that it imported."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Let fsync refuse what it refuses, but wait for no disk: none of these tests cuts the power.

    When it is called is held by those that note the calls, what for by benchmarks/power_cuts.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """Return what executes `benchmarks/NAME.py` and returns it as a module."""

    def load(name: str) -> ModuleType:
        if str(BENCHMARKS) not in sys.path:
            sys.path.append(str(BENCHMARKS))  # they import each other
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def timm(load_benchmark: Callable[[str], ModuleType]) -> Any:
    """timm itself, which also imports where torchvision is missing."""
    try:
        return load_benchmark("timm_peer").import_timm()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def as_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Return what lets a block see `tmp_path`, from within, as somebody whom permissions bind."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # pytest's own folders are closed to others

    @contextmanager
    def bound() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)

    return bound
