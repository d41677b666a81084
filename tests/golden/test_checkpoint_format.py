"""Checkpoints of format 1, as they were written first, are read for ever; and written to the byte the same.

`checkpoint_format_1` holds one of two pretraining ranks and one of fine-tuning, with few tensors and the
facts of real runs. Whoever changes the format gives it another number, and these files stay.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from coatnet.checkpoint.format import FORMAT
from coatnet.checkpoint.fragments import KINDS, Fragment
from coatnet.checkpoint.inspection import MANIFEST
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import from_dict, to_dict
from coatnet.model.config import ModelConfig
from coatnet.runtime.ranks import Ranks
from finetune.run import State as FinetuneState
from pretrain.state import State as PretrainState

GOLDEN = Path(__file__).with_name("checkpoint_format_1")
PRETRAIN, FINETUNE = 16, 12  # steps
RUNS = ((PRETRAIN, 2), (FINETUNE, 1))
FACTS = {
    step: json.loads((GOLDEN / f"facts-{kind}.json").read_text())
    for step, kind in ((PRETRAIN, "pretrain"), (FINETUNE, "finetune"))
}
LINE = (torch.arange(15.0) - 7).view(3, 5) / 8  # all of it exact on any machine
STATE = {
    ("weight", "head.logits.weight"): LINE,
    ("exp_avg", "head.logits.weight"): LINE / 8,
    ("exp_avg_sq", "head.logits.weight"): LINE.square(),
    ("ema", "head.logits.weight"): LINE / 2,
    ("weight", "head.logits.bias"): torch.tensor([0.5, -0.0, 2.0**-130]).bfloat16(),
    ("buffer", "stem.norm1.running_mean"): torch.tensor([0.25, 3.0]),
    ("buffer", "stem.norm1.num_batches_tracked"): torch.tensor(7),
}


def write(folder: Path, *, step: int, world_size: int) -> Path:
    """Write the state by so many ranks, which cut it where nothing is even."""
    words = HashStore()
    stores = [
        CheckpointStore(folder, ranks=Ranks(rank=rank, world_size=world_size, mailbox=words))
        for rank in range(world_size)
    ]
    for rank, store in enumerate(stores):
        fragments = []
        for (kind, name), tensor in STATE.items():
            first, end = (tensor.numel() * edge // world_size for edge in (rank, rank + 1))
            data = tensor.flatten()[first:end]
            if len(data):
                fragments.append(Fragment(kind, name, tuple(tensor.shape), first, data))
        seen = FACTS[step]["progress"]["samples_seen"]
        store.save(step=step, samples_seen=seen, fragments=fragments, facts=FACTS[step])
    for store in stores:
        store.close()
    return stores[0].path(step)


def found(step: int) -> Path:
    return GOLDEN / f"step-{step:08d}"


@pytest.mark.parametrize(("step", "world_size"), RUNS)
def test_every_tensor_and_fact_of_the_first_format_is_read(step: int, world_size: int) -> None:
    checkpoint = Checkpoint(found(step))
    checkpoint.verify()
    assert (checkpoint.step, checkpoint.manifest.world_size) == (step, world_size)
    assert (
        checkpoint.facts == FACTS[step] and checkpoint.samples_seen == FACTS[step]["progress"]["samples_seen"]
    )
    assert {(kind, name) for kind in KINDS for name in checkpoint.names(kind)} == set(STATE)
    for (kind, name), tensor in STATE.items():
        read = checkpoint.tensor(kind, name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)


@pytest.mark.parametrize(("step", "world_size"), RUNS)
def test_the_same_state_is_written_to_the_byte_the_same(tmp_path: Path, step: int, world_size: int) -> None:
    again = write(tmp_path, step=step, world_size=world_size)
    assert {one.name for one in again.iterdir()} == {one.name for one in found(step).iterdir()}
    for file in again.iterdir():
        assert file.read_bytes() == (found(step) / file.name).read_bytes(), file.name


@pytest.mark.parametrize(("step", "kind"), [(PRETRAIN, PretrainState), (FINETUNE, FinetuneState)])
def test_the_progress_and_the_model_of_an_old_run_are_understood(step: int, kind: Any) -> None:
    facts = Checkpoint(found(step)).facts
    assert to_dict(from_dict(ModelConfig, facts["model"], origin="golden")) == facts["model"]
    state = kind(**facts["progress"])
    assert state.step == step and asdict(state).items() >= FACTS[step]["progress"].items()


def test_the_document_names_the_number_that_is_written() -> None:
    text = (Path(__file__).parents[2] / "docs/checkpoint-format.md").read_text()
    assert re.search(rf"\| `format` \| {FORMAT};", text)
    assert json.loads(json.loads((found(PRETRAIN) / MANIFEST).read_text())["body"])["format"] == FORMAT
