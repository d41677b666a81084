"""The kernel's build: it goes on without a compiler, works from a clean tree, and stands a short fuzz."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def build(folder: Path, **environment: str) -> list[Path]:
    """Build the extension of a copied tree and return what came out."""
    shutil.copy(ROOT / "setup.py", folder)
    shutil.copytree(ROOT / "data_pipeline/decode/csrc", folder / "data_pipeline/decode/csrc")
    (folder / "pyproject.toml").write_text('[project]\nname = "kernel"\nversion = "0"\n')
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "out"]
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, timeout=240)
    return sorted((folder / "out").rglob("_kernel*.so"))


def test_a_failing_compiler_does_not_fail_the_build(tmp_path: Path) -> None:
    assert build(tmp_path, CC="false") == []


@needs_compiler
@pytest.mark.slow
def test_a_clean_tree_builds_without_a_warning(tmp_path: Path) -> None:
    (library,) = build(tmp_path, CFLAGS="-Werror")
    code = "import _kernel; print(_kernel.simd())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=library.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() in {"avx2", "plain"}


@needs_compiler
@pytest.mark.slow
def test_mutated_jpegs_find_nothing_under_the_sanitizers() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/fuzz_decode/run.py"), "--seconds", "3", "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["findings"] == 0 and result["inputs"] > 300
