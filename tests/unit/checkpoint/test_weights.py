"""Weights come from a run, a checkpoint or an export; what is none of these is refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coatnet.checkpoint.cli import _print, inspect_checkpoint
from coatnet.checkpoint.format import CheckpointError
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.store import CheckpointStore
from coatnet.checkpoint.weights import export_safetensors, load_weights, write_tensors
from coatnet.config import UserError, to_dict
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.ranks import Ranks
from finetune.classifier import open_classifier
from finetune.handover.export import export_model

CONFIG = ModelConfig(depths=[1, 1, 1, 1, 1], widths=[8, 8, 16, 32, 32], image_size=32, num_classes=3)


def write_run(directory: Path, *, ema: bool, step: int = 1) -> dict[str, torch.Tensor]:
    state = build_model(CONFIG, seed=1).state_dict()
    pieces = []
    for name, tensor in state.items():
        kind = "buffer" if "running" in name else "weight"
        pieces.append(Fragment(kind, name, tuple(tensor.shape), 0, tensor.flatten()))
        if ema:
            pieces.append(Fragment("ema", name, tuple(tensor.shape), 0, tensor.flatten() * 0.5))
    store = CheckpointStore(directory / "checkpoints", ranks=Ranks())
    facts = {"model": to_dict(CONFIG), "classes": ["a", "b", "c"], "evaluation": {"top1": 0.5}}
    store.save(step=step, samples_seen=8, fragments=pieces, facts=facts, wait=True)
    return state


@pytest.mark.parametrize("where", [".", "checkpoints/step-00000001"])
def test_a_run_and_a_checkpoint_give_a_model_that_loads(tmp_path: Path, where: str) -> None:
    state = write_run(tmp_path, ema=False)
    weights = load_weights(tmp_path / where)
    assert weights.classes == ["a", "b", "c"] and weights.model == CONFIG
    build_model(weights.model).load_state_dict(weights.tensors)
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in state.items())


def test_the_average_is_taken_where_there_is_one_unless_the_raw_weights_are_asked_for(tmp_path: Path) -> None:
    state = write_run(tmp_path, ema=True)
    name = "head.logits.weight"
    assert torch.equal(load_weights(tmp_path).tensors[name], state[name] * 0.5)
    assert torch.equal(load_weights(tmp_path, ema=False).tensors[name], state[name])
    for weights, share in (("auto", 0.5), ("ema", 0.5), ("raw", 1.0)):
        opened = open_classifier(str(tmp_path), weights=weights)
        assert torch.equal(opened.model.head.logits.weight, state[name] * share)
    export_model(str(tmp_path), tmp_path / "out", formats=["safetensors"], weights="raw")
    assert torch.equal(load_weights(tmp_path / "out").tensors[name], state[name])


def test_what_was_measured_of_the_average_is_not_said_of_the_raw_weights(tmp_path: Path) -> None:
    write_run(tmp_path / "averaged", ema=True)
    write_run(tmp_path / "alone", ema=False)
    assert "evaluation" in load_weights(tmp_path / "averaged").facts
    assert "evaluation" in load_weights(tmp_path / "alone", ema=False).facts
    assert "evaluation" not in load_weights(tmp_path / "averaged", ema=False).facts


def test_an_older_checkpoint_is_taken_where_the_newest_is_damaged_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        write_run(tmp_path, ema=False, step=step)
    file = tmp_path / "checkpoints/step-00000002/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load_weights(tmp_path).facts["step"] == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and str(file) in said and "of step 1 are taken" in said


def test_an_export_reads_back_equal(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ema=False)
    weights = load_weights(tmp_path / "run")
    exported = export_safetensors(weights, tmp_path / "out")
    for path in (exported, exported / "model.safetensors"):
        again = load_weights(path)
        assert again.model == weights.model and again.classes == weights.classes
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in weights.tensors.items())
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", "model.safetensors"]


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_named_safetensors_and_a_header_bomb_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": to_dict(CONFIG)}))
    file = tmp_path / "model.safetensors"
    for content in (
        pickle.dumps(Bomb()),
        (1 << 62).to_bytes(8, "little") + b"{" + b" " * 90,
        b"",
        b"{}" * 20,
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a") as caught:
            load_weights(file)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_what_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run directory, a checkpoint, nor an exported model"):
        load_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_weights(tmp_path)


def test_what_others_wrote_into_a_checkpoint_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = dict.fromkeys(("step", "samples_seen", "world_size", "epoch", "bytes", "verify_seconds"), 1)
    facts = {"classes": ["[/bold]"], "[/note]": "x"}
    _print({"directory": "runs/[/a]", **numbers, "kinds": {}, "facts": facts, "verified": True})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[/bold]", "[/note]", "runs/[/a]"))


def test_the_command_verifies_every_byte_unless_it_is_told_to_be_quick(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = write_run(tmp_path, ema=True)
    inspect_checkpoint(tmp_path, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] and found["step"] == 1 and found["facts"]["classes"] == ["a", "b", "c"]
    assert found["kinds"]["ema"] == {"tensors": len(state), "elements": sum(map(torch.numel, state.values()))}
    (file,) = (tmp_path / "checkpoints" / "step-00000001").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        inspect_checkpoint(tmp_path)
    inspect_checkpoint(tmp_path, as_json=True, quick=True)
    assert not json.loads(capsys.readouterr().out)["verified"]


def test_weights_that_others_keep_once_under_two_names_or_in_one_piece_of_memory_are_written(
    tmp_path: Path,
) -> None:
    flat = torch.arange(8.0)
    given = {"a": flat[:3], "b": flat[3:], "same as a": flat[:3]}
    write_tensors(given, tmp_path / "model.safetensors", described_by=tmp_path / "config.json")
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == given.keys() and all(torch.equal(written[name], given[name]) for name in given)
