"""The configs that come with the code: `configs/` of a checkout, `coatnet/recipes/` of an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDER = Path("configs")


def find_config(path: Path, *, beside: Path = Path()) -> Path:
    """Return the file in the folder `beside`, or what came with the code where no `configs/…` lies there.

    So the documents' commands mean the same from every folder, and for those who installed a wheel.
    """
    here = beside / path
    if here.exists() or path.parts[:1] != _FOLDER.parts:
        return here
    shipped = _home().joinpath(*path.parts[1:])
    return shipped if shipped.exists() else here


def shipped_as(name: str) -> list[str]:
    """Return the paths, `configs/…`, under which `find_config` finds files of a name without its `.yaml`."""
    found = [path for path in _home().rglob("*.yaml") if path.stem == name]
    return sorted(str(_FOLDER / path.relative_to(_home())) for path in found)


def _home() -> Path:
    recipes = _PACKAGE / "recipes"
    return recipes if recipes.is_dir() else _PACKAGE.parent / _FOLDER
