"""A save crashed everywhere (benchmarks/crash_states.py does more): nothing that was promised is lost."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace records the system calls")

FORGETFUL = """
import os
real = os.fsync
def fsync(descriptor):
    if not os.readlink(f"/proc/self/fd/{descriptor}").endswith(".safetensors"):
        real(descriptor)
os.fsync = fsync
"""


@pytest.fixture(scope="module")
def crash_states() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "crash_states.py"
    spec = importlib.util.spec_from_file_location("crash_states", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash_states"] = module
    spec.loader.exec_module(module)
    return module


def test_every_crash_leaves_the_newest_promised_checkpoint(crash_states: ModuleType) -> None:
    outcome = crash_states.campaign(300, seed=1)
    assert outcome.states == 300 and outcome.wrong == []


def test_the_campaign_catches_a_store_that_forgets_one_fsync(crash_states: ModuleType) -> None:
    assert crash_states.campaign(300, seed=1, prologue=FORGETFUL).unrecoverable > 0
