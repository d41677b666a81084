"""Whoever uses a model holds its weights once: those of the largest take 10 GB, and a login node has few."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.store import CheckpointStore
from coatnet.checkpoint.timm import timm_config, to_timm
from coatnet.checkpoint.weights import Weights, export_safetensors, load_tensors, read_safetensors
from coatnet.config import to_dict
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.ranks import Ranks

# Each is done with a tiny model first, which loads whatever is lazy, then in a process of its own, in which
# nothing was freed before.
PEAKS = """
import os, sys
from pathlib import Path
import torch
from finetune.classifier import open_classifier
from finetune.config import FinetuneConfig
from finetune.handover.export import export_model
from finetune.handover.importing import import_model
from finetune.start import starting_model

FOREIGN = {"name": "coatnet_1", "px": 32}
WAYS = {
    "exported": lambda folder: open_classifier(str(folder / "exported")),
    "run": lambda folder: open_classifier(str(folder / "run")),
    "init": lambda folder: starting_model(FinetuneConfig(init=str(folder / "run")), classes=["a", "b"]),
    "export": lambda folder: export_model(str(folder / "run"), folder / "out", formats=["safetensors"]),
    "import": lambda folder: import_model(folder / "timm.safetensors", folder / "own", **FOREIGN),
}

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
tiny, large = map(Path, sys.argv[1:])
for name, way in WAYS.items():
    if name != "import":
        way(tiny)
for name, way in WAYS.items():
    if not os.fork():
        before = resident("VmRSS")
        way(large)
        print(name, resident("VmHWM") - before, flush=True)
        os._exit(0)
    os.wait()
"""


def lay_out(config: ModelConfig, folder: Path) -> int:
    """Keep a model in every form that a command takes; return the bytes of its weights."""
    state = build_model(config, seed=0).state_dict()
    export_safetensors(Weights(config, state), folder / "exported")
    store = CheckpointStore(folder / "run/checkpoints", ranks=Ranks())
    pieces = [
        Fragment(kind, name, tuple(one.shape), 0, one.flatten())
        for name, one in state.items()
        for kind in ("buffer" if "running" in name else "weight", "ema")
    ]
    store.save(step=1, samples_seen=8, fragments=pieces, facts={"model": to_dict(config)}, wait=True)
    store.close()
    return sum(tensor.nbytes for tensor in state.values())


@pytest.mark.slow
def test_no_command_holds_a_models_weights_twice(tiny: ModelConfig, tmp_path: Path) -> None:
    lay_out(tiny, tmp_path / "tiny")
    config = timm_config("coatnet_1_224", num_classes=2, image_size=32)
    size = lay_out(config, tmp_path / "large")
    save_file(to_timm(build_model(config, seed=0).state_dict(), config), tmp_path / "large/timm.safetensors")
    words = [sys.executable, "-c", PEAKS, str(tmp_path / "tiny"), str(tmp_path / "large")]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    taken = {name: int(peak) / size for name, peak in map(str.split, printed.splitlines())}
    written = 0 if hasattr(safetensors, "TensorSpec") else 1  # the library copied what it writes before 0.8
    most = {"exported": 1.75, "run": 1.75, "init": 1.75, "export": 1.75 + written, "import": 1.75 + written}
    assert taken.keys() == most.keys() and all(taken[name] < most[name] for name in most), taken


def test_weights_are_taken_over_as_they_are_where_nothing_about_them_changes(
    exported: Path, tiny: ModelConfig
) -> None:
    tensors = read_safetensors(exported / "model.safetensors")
    model = build_model(tiny, device="meta")
    load_tensors(model, tensors, device="cpu", origin="exported")
    assert all(model.state_dict()[name].data_ptr() == one.data_ptr() for name, one in tensors.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(
        buffer.is_meta or (name.endswith("sums") and buffer.any()) for name, buffer in model.named_buffers()
    )
    halves = {name: one.half() for name, one in tensors.items()}
    model = build_model(tiny, device="meta")
    load_tensors(model, halves, device="cpu", origin="halves")
    assert {one.dtype for one in model.state_dict().values()} == {torch.float32}


def test_a_file_of_weights_may_be_cut_short_under_who_computes_with_them(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    kinds = (torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.int16, torch.bool)
    wanted = {f"{kind}": torch.ones(3, 5).to(kind) for kind in kinds}
    wanted |= {"number": torch.tensor(7.0), "nothing": torch.zeros(0, 3)}
    save_file(wanted, file)
    found = read_safetensors(file)
    assert str(file) not in Path("/proc/self/maps").read_text(), (
        "its pages would be lost, and the process killed"
    )
    file.write_bytes(b"")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float())
