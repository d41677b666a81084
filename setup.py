"""The one part of the build that pyproject.toml cannot say: the decode kernel, a C extension.

It needs a C compiler and Python's headers, and no library. Where they are missing the build goes on without
it; decoding then falls back to Pillow, and `coatnet doctor` says so and what it costs.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCE = Path("data_pipeline/decode/csrc")

setup(
    ext_modules=[
        Extension(
            "data_pipeline.decode._kernel",
            sources=sorted(str(path) for path in SOURCE.glob("*.c")),
            depends=sorted(str(path) for path in SOURCE.glob("*.h")),
            extra_compile_args=["-std=c11", "-O3", "-fno-strict-aliasing", "-Wall", "-Wextra"],
            libraries=["m"],
            optional=True,
        )
    ]
)
