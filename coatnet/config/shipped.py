"""The configs that come with the code: `configs/` of a checkout, `coatnet/recipes/` of an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDER = "configs"


def find_config(path: Path, *, beside: Path = Path()) -> Path:
    """Return the file in the folder `beside`, or what came with the code where no `configs/…` lies there.

    So the documents' commands mean the same from every folder, and for those who installed a wheel.
    """
    here = beside / path
    if here.exists() or path.parts[:1] != (_FOLDER,):
        return here
    recipes = _PACKAGE / "recipes"
    home = recipes if recipes.is_dir() else _PACKAGE.parent / _FOLDER
    shipped = home.joinpath(*path.parts[1:])
    return shipped if shipped.exists() else here
