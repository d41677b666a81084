"""A wheel, unpacked where no checkout is, keeps what the documents' commands promise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.snapshot import PACKAGES

ROOT = Path(__file__).parents[2]
RECIPE = "configs/pretrain/imagenet_1k_coatnet_0.yaml"


@pytest.mark.slow
def test_a_wheel_holds_the_recipes_and_runs_them_from_any_folder(tmp_path: Path) -> None:
    source, built, site, away = (tmp_path / name for name in ("source", "built", "site", "away"))
    # Of a copy: setuptools leaves folders beside what it builds.
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    # The extensions are others' business, and to compile them takes longer than all else here.
    subprocess.run([*build, "-w", built, source], check=True, env={**os.environ, "CC": "/bin/false"})
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(site)
    away.mkdir()

    def coatnet(*words: str) -> str:
        command = [sys.executable, "-m", "coatnet.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shipped = {str(path.relative_to(site / "coatnet/recipes")) for path in site.rglob("recipes/**/*.yaml")}
    assert shipped == {str(path.relative_to(ROOT / "configs")) for path in ROOT.glob("configs/**/*.yaml")}
    plan = json.loads(coatnet("plan", RECIPE, "nodes=2", "hardware=h100", "--json"))
    assert plan["world_size"] == 16
    script = coatnet("submit", RECIPE, "run.directory=run", "data.train=shards", "--dry-run")
    assert "#SBATCH --nodes" in script
