"""Write constraints.txt: exact versions for every Python that is allowed, none younger than two weeks.

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
_AGE = timedelta(days=14)
_BESIDE = "setuptools\nwheel\ntimm\n"  # what the Makefile installs beside pyproject.toml's
# The rest of a marker is pyproject.toml's tool.uv.environments said again.
_PYTHON = re.compile(r"python_full_version (?:>=|<) '3\.1[0-4]'")


def main() -> None:
    """Ask uv for versions and keep a line per version, with the Pythons that it is for."""
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "pyproject.toml", "-"]
    command += ["--extra", "test", "--universal", "--python-version", "3.10", "--no-python-downloads"]
    command += ["--exclude-newer", (datetime.now(timezone.utc) - _AGE).isoformat()]
    command += ["--output-file", str(_PINS), "--no-header", "--no-annotate", "--quiet"]
    # timm is installed without what it asks for: torchvision has no CPU build everywhere.
    command += ["--no-emit-package", "torchvision", *sys.argv[1:]]
    subprocess.run(command, cwd=_ROOT, input=_BESIDE, text=True, check=True, stdout=subprocess.DEVNULL)
    lines = []
    for line in _PINS.read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        pythons = " and ".join(_PYTHON.findall(marker))
        lines.append(f"{pin} ; {pythons}" if pythons else pin)
    _PINS.write_text(_HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
