"""Ranges in pyproject.toml and pins in constraints.txt agree, so that a fresh machine can install."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    pytest.skip("tomllib comes with Python 3.11", allow_module_level=True)

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
PINS = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PINS.items()}
EXTRAS = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
REQUIREMENTS = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS]]


@pytest.mark.parametrize("requirement", [one for one in REQUIREMENTS if one.name != "coatnet"], ids=str)
def test_every_requirement_has_an_exact_version_inside_its_range(requirement: Requirement) -> None:
    pinned = PINS.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
    assert pinned is not None, f"constraints.txt has no version of {requirement.name}"
    assert requirement.specifier.contains(pinned), f"{requirement} does not admit {pinned}"


def test_torch_has_one_pin_for_the_cpu_and_the_cuda_build() -> None:
    assert re.fullmatch(r"[0-9.]+", PINS["torch"])
