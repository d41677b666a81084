"""The C extensions on the compilers of clusters: RHEL 9 and Ubuntu 22.04 have gcc 11."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import torch

from coatnet.model import rows

ROOT = Path(__file__).parents[2]


@pytest.mark.campaign
@pytest.mark.parametrize("compiler", ["gcc-9", "gcc-11"])
def test_both_extensions_build_and_compute_alike_with_an_older_compiler(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(tmp_path / "objects")]
    subprocess.run(
        [*build, "--build-lib", str(tmp_path)], cwd=ROOT, env={**os.environ, "CC": compiler}, check=True
    )
    built = {path.name.partition(".")[0]: path for path in tmp_path.rglob("*.so")}
    assert set(built) == {"_kernel", "_rows"}

    x, weight, bias = torch.randn(4, 7, 7, 24) * 3 + 20, torch.randn(24), torch.randn(24)
    ours = rows.normalise(x, weight, bias, groups=2, eps=1e-3, gelu=True)
    loader = ExtensionFileLoader("_rows", str(built["_rows"]))
    spec = spec_from_loader("_rows", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(rows, "_native", module)
    for one, other in zip(rows.normalise(x, weight, bias, groups=2, eps=1e-3, gelu=True), ours, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
