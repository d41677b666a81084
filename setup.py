"""The part of the build that pyproject.toml cannot say: two C extensions, and recipes in a wheel.

The extensions need a C compiler and Python's headers, and no library. Where they are missing the build goes
on without: images are then decoded by Pillow (`coatnet doctor` says so and what it costs), and a network on
a CPU runs on torch's own operators.
"""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

WARNINGS = ["-Wall", "-Wextra"]


def extension(name: str, folder: str, *, flags: list[str], links: list[str]) -> Extension:
    """Describe an extension made of a folder's C files."""
    return Extension(
        name,
        sources=sorted(str(path) for path in Path(folder).glob("*.c")),
        depends=sorted(str(path) for path in Path(folder).glob("*.h")),
        extra_compile_args=["-std=c11", "-O3", *flags, *WARNINGS],
        extra_link_args=links,
        libraries=["m"],
        optional=True,
    )


class BuildWithRecipes(build_py):
    """A wheel has no folder beside the packages, so what lies in `configs/` goes into one of them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            recipes = Path(self.build_lib) / "coatnet" / "recipes"
            shutil.copytree("configs", recipes, ignore=shutil.ignore_patterns("*.md"), dirs_exist_ok=True)


setup(
    cmdclass={"build_py": BuildWithRecipes},
    ext_modules=[
        extension(
            "data_pipeline.decode._kernel",
            "data_pipeline/decode/csrc",
            flags=["-fno-strict-aliasing"],
            links=[],
        ),
        # Without errno and traps loops with conditions can be vectorised; nothing is reordered.
        extension(
            "coatnet.model._rows",
            "coatnet/model/csrc",
            flags=["-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"],
            links=["-fopenmp"],
        ),
    ],
)
