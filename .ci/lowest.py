"""Print pins for the oldest versions that pyproject.toml allows; torch, Triton and timm stay as tested.

make test-lowest
"""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

_CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_AS_TESTED = {"torch", "triton", "timm"}  # torch decides what is downloaded, and Triton comes with it


def main() -> None:
    """Print a pin per line."""
    pins = [line for line in _CONSTRAINTS.read_text().splitlines() if line.split("==")[0] in _AS_TESTED]
    for requirement in map(Requirement, requires("coatnet") or []):
        oldest = [one.version for one in requirement.specifier if one.operator == ">="]
        if oldest and requirement.name not in _AS_TESTED:
            pins.append(f"{requirement.name}=={oldest[0]}")
    print("\n".join(sorted(set(pins))))


if __name__ == "__main__":
    main()
