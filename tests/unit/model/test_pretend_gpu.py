"""What torch would run on a GPU, asked of a GPU that is only pretended (benchmarks/pretend_gpu.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_ROOT = Path(__file__).parents[3]

pytest.importorskip("triton", reason="torch asks Triton about the card")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has a CUDA of its own"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
]

_TYPES = """
from pretend_gpu import leave, pretend
pretend()
import json, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.network import CoAtNet
from coatnet.training.precision import compute_in_bf16

class Types(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = {}
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        floats = [one for one in arguments if isinstance(one, torch.Tensor) and one.is_floating_point()]
        for one in floats:
            assert one.device.type == "cuda"
        self.seen.setdefault(str(function.overloadpacket), set()).update(str(one.dtype)[6:] for one in floats)
        return function(*arguments, **(options or {}))

with FakeTensorMode():
    with torch.device("cuda"):
        model = CoAtNet(ModelConfig(name="coatnet_0", num_classes=5), norm=NormConfig()).train()
        images = torch.empty(2, 3, 224, 224)
    compute_in_bf16(model, device_type="cuda")
    with Types() as types:
        model(images).float().sum().backward()
assert all(one.dtype == one.grad.dtype == torch.float32 for one in model.parameters())
print(json.dumps({name: sorted(found) for name, found in types.seen.items()}))
leave()
"""


def _child(*command: str) -> Any:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": f"{_ROOT / 'benchmarks'}{os.pathsep}{_ROOT}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_on_a_gpu_products_compute_in_bf16_and_norms_in_fp32_and_weights_stay_fp32() -> None:
    types = _child("-c", _TYPES)
    for name in (
        "aten.mm",
        "aten.addmm",
        "aten.convolution",
        "aten.gelu_backward",
        "coatnet.attention_backward",
    ):
        assert "bfloat16" in types[name], name
    for name in ("aten.mm", "aten.addmm", "aten.convolution"):
        assert types[name] == ["bfloat16"], name
    for name in (
        "aten.native_batch_norm",
        "aten.native_batch_norm_backward",
        "aten.native_layer_norm_backward",
    ):
        assert types[name] == ["float32"], name


def test_compiled_for_a_gpu_a_block_keeps_no_map_in_fp32_between_its_kernels() -> None:
    side, hidden, batch = 28, 768, 8
    wide = batch * side * side * hidden * 2  # bytes of the expanded map in bf16
    block = _child(
        "benchmarks/gpu_traffic.py",
        "--model",
        "coatnet_0",
        "--batch",
        str(batch),
        "--kernels",
        "S2.1",
        "--json",
    )["S2.1"]
    most = {way: max(one["bytes"] for one in found) / wide for way, found in block.items()}
    total = {way: sum(one["bytes"] for one in found) for way, found in block.items()}
    # two maps read and one written, all bf16; a map of fp32 is twice as large, and inductor would keep five
    assert most["recomputed"] < 3.1 < 5 < most["stored"]
    assert total["recomputed"] < 0.65 * total["stored"]
