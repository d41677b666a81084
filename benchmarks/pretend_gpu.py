"""A GPU that is none: torch takes every decision that it takes on an H100, on tensors without memory.

`pretend` comes before the first import of torch: it builds `pretend_gpu.cpp` with the compiler at hand, then
answers what torch and Triton ask about the card. What can be learned so is what would run and in which types;
never how long it takes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_ANSWERS = {
    "is_available": True,
    "is_bf16_supported": True,
    "current_device": 0,
    "device_count": 1,
    "get_device_capability": (9, 0),
    "_lazy_init": None,
    "set_rng_state": None,
}
_H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
    warp_size=32, max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    is_integrated=False, gcnArchName="",
)  # fmt: skip


def pretend() -> None:
    """Let this process see an H100. The first import of torch must be this one's.

    Raises:
        RuntimeError: torch is loaded already.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch has been imported: a GPU can be pretended only before")
    _load_shim()
    import torch
    import torch.amp.autocast_mode as autocast
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    for name, answer in _ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.get_device_properties = lambda *_: _H100  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)  # type: ignore[assignment]
    autocast.amp_definitely_not_available = torch.cuda.amp.common.amp_definitely_not_available = lambda: False
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


def _load_shim() -> None:
    """Build and load the C++ part; torch finds the libraries that it links with already loaded."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder = Path(spec.origin).parent
    include, lib = torch_folder / "include", torch_folder / "lib"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "pretend_gpu.so")
        subprocess.run(
            ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{include}",
             str(Path(__file__).with_suffix(".cpp")), "-o", str(built), f"-L{lib}", "-lc10", "-ltorch_cpu",
             f"-Wl,-rpath,{lib}"],
            check=True,
        )  # fmt: skip
        ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)
