"""Commands on a CUDA device whose memory is the host's (`benchmarks/host_gpu`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NEEDS_HOST_GPU = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has a CUDA of its own"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
]


def on_host_gpu(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with some arguments there."""
    command = [sys.executable, ROOT / "benchmarks/host_gpu", sys.executable, "-W", "ignore", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
