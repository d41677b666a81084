"""Write constraints.txt and requirements.lock: exact versions for every Python, none younger than two weeks.

make pins                       keep what is pinned, where it may stay
make pins UPGRADE=--upgrade     take the newest that is old enough

A compromised release is mostly found within days.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PINS = _ROOT / "constraints.txt"
_HEAD = """\
# Exact versions for Python 3.10 to 3.14, written by `make pins`.
# torch is one pin for the CPU and the CUDA build alike.
"""
_HASHES = _ROOT / "requirements.lock"
_HASHES_HEAD = """\
# What constraints.txt names, less tests and torch, with the hashes of every file; written by `make pins`.
# How to install by it: docs/questions.md.
"""
_TORCHS_OWN = ("torch", "triton", "nvidia-", "cuda-")  # files differ by build
_AGE = timedelta(days=14)
_BESIDE = "setuptools\nwheel\ntimm\n"  # what the Makefile installs beside pyproject.toml's
# The rest of a marker is pyproject.toml's tool.uv.environments said again.
_PYTHON = re.compile(r"python_full_version (?:>=|<) '3\.1[0-4]'")


def main() -> None:
    """Write the versions, then the hashes of what a run needs of them."""
    # timm is installed without what it asks for: torchvision has no CPU build everywhere.
    _compile(
        _PINS, _HEAD, "--extra", "test", "--no-emit-package", "torchvision", *sys.argv[1:], beside=_BESIDE
    )
    extras = [option for name in ("quickstart", "s3", "tables", "onnx") for option in ("--extra", name)]
    pinned = {line.partition("==")[0] for line in _PINS.read_text().splitlines() if not line.startswith("#")}
    builds = sorted(name for name in pinned if name.startswith(_TORCHS_OWN))
    left_out = [option for name in builds for option in ("--no-emit-package", name)]
    _compile(_HASHES, _HASHES_HEAD, "--generate-hashes", "--constraint", str(_PINS), *extras, *left_out)


def _compile(destination: Path, head: str, *options: str, beside: str = "") -> None:
    """Ask uv for versions and keep an entry per version, with the Pythons that it is for."""
    command = [
        str(Path(sys.executable).with_name("uv")),
        "pip",
        "compile",
        "pyproject.toml",
        "-",
        "--universal",
    ]
    command += [
        "--python-version",
        "3.10",
        "--no-python-downloads",
        "--no-header",
        "--no-annotate",
        "--quiet",
    ]
    command += ["--exclude-newer", (datetime.now(timezone.utc) - _AGE).isoformat()]
    command += ["--output-file", str(destination), *options]
    subprocess.run(command, cwd=_ROOT, input=beside, text=True, check=True, stdout=subprocess.DEVNULL)
    lines = []
    for line in destination.read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        pythons = " and ".join(_PYTHON.findall(marker))
        more = " \\" if marker.endswith("\\") else ""
        lines.append((f"{pin} ; {pythons}" if pythons else pin) + more)
    destination.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
