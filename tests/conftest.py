"""A file system of a test's own, small or not to be written to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mounted() -> Callable[..., AbstractContextManager[Path]]:
    """Return what mounts a file system at a folder for a while, or skips the test where it may not."""

    @contextmanager
    def mount(folder: Path, options: str, *, kind: str = "tmpfs", source: str = "none") -> Iterator[Path]:
        folder.mkdir(exist_ok=True)
        if shutil.which("mount") is None:
            pytest.skip("there is no program to mount by")
        command = ["mount", "-t", kind, "-o", options, source, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    return mount
