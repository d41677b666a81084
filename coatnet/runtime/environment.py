"""What a run ran on: the code's commit, versions, machine. Kept in environment.json. Imports no torch."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "deepspeed", "accelerate", "webdataset", "numpy", "safetensors", "coatnet")
_GIT_SECONDS = 5


def describe_environment(**more: Any) -> dict[str, Any]:
    """Return host, Python, versions and the code's commit, and `more` (device, decoder …) beside."""
    return {"host": platform.node(), "commit": code_commit(), **more, **installed_versions(_PACKAGES)}


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return Python's version and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_commit() -> str:
    """Return the checkout's commit, "+changes" added where files differ, or "unknown" outside of one."""
    root = Path(__file__).parents[2]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if not commit:
        return "unknown"
    return f"{commit}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
