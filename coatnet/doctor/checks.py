"""Checks that belong to no package, and the collection of those that do (entry points `coatnet.checks`)."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

_GROUP = "coatnet.checks"
_PACKAGES = ("torch", "deepspeed", "accelerate", "webdataset", "safetensors", "omegaconf", "tensorboard")
_MIN_OPEN_FILES = 4096
_GPUS = "/proc/driver/nvidia/gpus"
_MIN_SHM_BYTES = 1 << 30
_MIN_FREE_BYTES = 10 << 30


def run_checks() -> list[dict[str, str]]:
    """Return one finding per check: name, status (ok, warn, fail) and a line that says what to do."""
    findings = [_python(), *_versions(), _devices(), _network(), _open_files()]
    findings += [_space("/dev/shm", _MIN_SHM_BYTES), _space(os.getcwd(), _MIN_FREE_BYTES)]
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        findings += point.load()()
    return findings


def _finding(name: str, good: bool, detail: str, *, bad: str = "warn") -> dict[str, str]:
    return {"name": name, "status": "ok" if good else bad, "detail": detail}


def _python() -> dict[str, str]:
    return _finding(
        "python", True, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"
    )


def _versions() -> list[dict[str, str]]:
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(_finding(name, True, version(name)))
        except PackageNotFoundError:
            findings.append(
                _finding(name, False, f"not installed: pip install -c constraints.txt {name}", bad="fail")
            )
    return findings


def _devices() -> dict[str, str]:
    if importlib.util.find_spec("torch") is None:
        return _finding("devices", False, "torch is not installed", bad="fail")
    import torch

    if not torch.cuda.is_available():
        return _no_device(torch)
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return _finding("devices", True, f"{torch.cuda.device_count()} × {', '.join(sorted(names))}")


def _no_device(torch: Any) -> dict[str, str]:
    """Tell a machine without GPUs from one whose GPUs this torch cannot use."""
    count = len(os.listdir(_GPUS)) if os.path.isdir(_GPUS) else 0
    if not count:
        return _finding("devices", True, "no GPU: everything runs on the CPU, with gloo")
    if torch.version.cuda is None:
        reason = "is a build for CPUs; reinstall it with constraints.txt from an index that has CUDA's"
    else:
        reason = (
            f"for CUDA {torch.version.cuda} cannot use them: see whether the driver is older (nvidia-smi) "
            "and what CUDA_VISIBLE_DEVICES says"
        )
    return _finding("devices", False, f"{count} × NVIDIA, but torch {torch.__version__} {reason}")


def _network() -> dict[str, str]:
    """Say by what batch norm and GELU run on a CPU; on a GPU it makes no difference."""
    if importlib.util.find_spec("coatnet.model._rows") is not None:
        return _finding("model", True, "C extension for batch norm and GELU on a CPU")
    return _finding(
        "model",
        False,
        "torch's operators: the C extension for batch norm and GELU on a CPU was not built; "
        "install a C compiler and Python's headers, then reinstall coatnet",
    )


def _open_files() -> dict[str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= _MIN_OPEN_FILES
    advice = "" if enough else f"; run `ulimit -n {min(hard, 65536) if hard > 0 else 65536}`"
    return _finding("open files", enough, f"{soft} allowed{advice}")


def _space(path: str, wanted_bytes: int) -> dict[str, str]:
    if not os.path.isdir(path):
        return _finding(f"space in {path}", False, "there is no such directory")
    free = shutil.disk_usage(path).free
    name = "free space here" if path == os.getcwd() else f"space in {path}"
    return _finding(
        name, free >= wanted_bytes, f"{free / 2**30:.1f} GiB free, {wanted_bytes / 2**30:.0f} wanted"
    )
