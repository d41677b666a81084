"""Ranges in pyproject.toml and pins in constraints.txt agree, so that a fresh machine can install."""

from __future__ import annotations

import functools
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.10.4", "3.11.9", "3.12.8", "3.13.5", "3.14.2"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
OPTIONAL = PROJECT["optional-dependencies"]
NEEDED = [
    *PROJECT["dependencies"],
    *(text for name, texts in OPTIONAL.items() if name != "test" for text in texts),
]
REQUIREMENTS = [Requirement(text) for text in [*NEEDED, *OPTIONAL["test"]]]


def pins_for(python: str) -> dict[str, Requirement]:
    here = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    return {
        canonicalize_name(pin.name): pin for pin in PINS if pin.marker is None or pin.marker.evaluate(here)
    }


@functools.cache
def installed(name: str) -> tuple[str, str] | None:
    """Return the version that is installed here, and the Pythons that it admits."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None  # of another Python, or of torch's CUDA build
    return found.version, found.metadata["Requires-Python"] or ""


def version(pin: Requirement) -> str:
    (exact,) = pin.specifier
    assert exact.operator == "==", f"{pin} is not exact"
    return exact.version


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_an_exact_version_inside_its_range(python: str) -> None:
    pins = pins_for(python)
    for requirement in REQUIREMENTS:
        if requirement.name == "coatnet":
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt has no version of {requirement.name} for Python {python}"
        assert requirement.specifier.contains(version(pin)), f"{requirement} does not admit {pin}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_version_that_is_installed_here_admits_each_python_that_it_is_pinned_for(python: str) -> None:
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    refused = {}
    for name, pin in pins_for(python).items():
        here, admitted = installed(name) or ("", "")
        if here == version(pin) and not SpecifierSet(admitted).contains(python):
            refused[str(pin)] = admitted
    assert not refused, f"make pins: not for Python {python}: {refused}"


def test_what_is_installed_by_hashes_has_the_pinned_versions_and_lacks_nothing() -> None:
    entries = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    hashed = {entry.split(" --hash=")[0].strip() for entry in entries if entry.count(" --hash=sha256:")}
    assert hashed == {entry.split(" --hash=")[0].strip() for entry in entries if not entry.startswith("#")}
    assert {Requirement(entry) for entry in hashed} <= set(PINS)
    locked = {canonicalize_name(Requirement(entry).name) for entry in hashed}
    assert {canonicalize_name(Requirement(text).name) for text in NEEDED} - locked == {"torch"}


def test_torch_has_one_pin_for_the_cpu_and_the_cuda_build() -> None:
    (pin,) = (pin for pin in PINS if pin.name == "torch")
    assert re.fullmatch(r"[0-9.]+", version(pin)) and pin.marker is None
