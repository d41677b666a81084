"""Loading DeepSpeed: it asks no compiler what it could build, and says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import deepspeed.ops

def refuse():
    raise AssertionError("asked what could be built: with a GPU that runs compilers and prints warnings")

deepspeed.ops._probe_compatible_ops = refuse
from pretrain.engine.start import load_deepspeed

load_deepspeed()
from deepspeed.comm.torch import build_shm_op

assert build_shm_op() is None
"""


@pytest.mark.slow
def test_loading_deepspeed_does_not_ask_what_could_be_built_and_builds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
