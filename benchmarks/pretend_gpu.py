"""A GPU that is none: torch takes every decision that it takes on an H100, on tensors without memory.

`pretend` comes before the first import of torch: it loads the device of `host_gpu`, whose memory no tensor of
FakeTensorMode takes, then answers what torch and Triton ask about the card. What can be learned so is what
would run and in which types; never how long it takes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from types import SimpleNamespace
from typing import Any

from host_gpu.__main__ import build
from host_gpu.device import answer_for_card


def pretend() -> None:
    """Let this process see an H100. The first import of torch must be this one's.

    Raises:
        RuntimeError: torch is loaded already.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch has been imported: a GPU can be pretended only before")
    ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    answer_for_card()
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target: Any = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
    )
    driver.set_active(target)


def leave() -> None:
    """End this process at once, and well: torch's thread for the device aborts some ordinary ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
