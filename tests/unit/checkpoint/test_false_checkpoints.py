"""Checkpoints that others made, sealed anew: what they claim is checked before memory is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from coatnet.checkpoint.format import FORMAT, CheckpointError, read_json, write_json
from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.inspection import MANIFEST, check_model
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.checkpoint.weights import load_weights
from coatnet.config import UserError, to_dict
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.ranks import Ranks

TINY = ModelConfig(depths=[1] * 5, widths=[8, 8, 16, 32, 32], num_classes=3, image_size=64)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", ranks=Ranks.single(), lease=None)
    model = build_model(TINY, seed=0)
    tensors = [("weight", name, one.detach()) for name, one in model.named_parameters()]
    tensors += [("buffer", name, one) for name, one in model.named_buffers()]
    store.save(
        step=1,
        samples_seen=8,
        fragments=[Fragment(kind, name, tuple(t.shape), 0, t.reshape(-1)) for kind, name, t in tensors],
        facts={"model": to_dict(TINY), "classes": ["a", "b", "c"]},
    )
    store.close()
    return tmp_path / "run"


def reseal(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    (manifest,) = run.glob("checkpoints/step-*/manifest.json")
    body = json.loads(json.loads(manifest.read_text())["body"])
    change(body)
    text = json.dumps(body)
    manifest.write_text(json.dumps({"xxh3": xxhash.xxh3_64_hexdigest(text.encode()), "body": text}))
    return manifest.parent


def first_piece(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["files"][0]["pieces"][0].update(changes)


def test_the_untouched_one_loads(run: Path) -> None:
    weights = load_weights(run)
    assert weights.classes == ["a", "b", "c"] and torch.is_tensor(weights.tensors["head.logits.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ["x"]},
        {"start": -1},
        {"count": 1 << 60},
        {"offset": 1 << 40},
        {"dtype": "EVIL"},
        {"bytes": 1},
        {"start": "0"},
        {"start": False},
        {"shape": [-3, -1]},
        {"shape": [1.0]},
        {"kind": []},
        {"name": None},
    ],
    ids=str,
)
def test_a_piece_that_is_none_or_outside_of_its_tensor_or_file_is_refused(
    run: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match="not a manifest"):
        Checkpoint(reseal(run, first_piece(**changes)))


@pytest.mark.parametrize("changes", [{"name": None}, {"header_bytes": "8"}, {"header_xxh3": 0}], ids=str)
def test_a_file_that_is_described_by_other_than_words_and_numbers_is_refused(
    run: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=f"not a manifest \\({next(iter(changes))} is "):
        Checkpoint(reseal(run, lambda body: body["files"][0].update(changes)))


@pytest.mark.parametrize("changes", [{"step": "1"}, {"facts": []}, {"world_size": 1.0}], ids=str)
def test_a_manifest_of_other_than_numbers_and_facts_is_refused(run: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"not a manifest \\({next(iter(changes))} is "):
        Checkpoint(reseal(run, lambda body: body.update(changes)))


def test_a_tensor_of_which_little_is_there_asks_for_no_memory(run: Path) -> None:
    checkpoint = Checkpoint(reseal(run, first_piece(shape=[1 << 50])))
    piece = checkpoint.manifest.files[0].pieces[0]
    with pytest.raises(CheckpointError, match="lacks elements"):
        checkpoint.tensor(piece.kind, piece.name)


@pytest.mark.parametrize("changes", [{"depths": [1, 10**9, 1, 1, 1]}, {"widths": [10**6] * 5}], ids=str)
def test_a_model_larger_than_its_weights_is_not_built(run: Path, changes: dict[str, Any]) -> None:
    reseal(run, lambda body: body["facts"]["model"].update(changes))
    with pytest.raises(UserError, match="describes a larger model"):
        load_weights(run)


def test_a_pipe_and_a_nest_in_place_of_the_manifest_are_refused_without_waiting(run: Path) -> None:
    (manifest,) = run.glob("checkpoints/step-*/manifest.json")
    manifest.write_text('{"body":' + "[" * 500_000)
    with pytest.raises(CheckpointError, match="not a sealed JSON document"):
        Checkpoint(manifest.parent)
    manifest.unlink()
    os.mkfifo(manifest)
    assert check_model(run) is None
    with pytest.raises(CheckpointError, match="is not a regular file"):
        Checkpoint(manifest.parent)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of one rank with two tensors."""
    store = CheckpointStore(tmp_path, ranks=Ranks())
    pieces = [Fragment("weight", name, (4,), 0, torch.ones(4)) for name in "ab"]
    store.save(step=1, samples_seen=8, fragments=pieces, facts={}, wait=True)
    return store.path(1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("torn", "not a sealed JSON document"),
        ("[]", "not a sealed JSON document"),
        ("{}", "not a sealed JSON document"),
        ('{"xxh3": "", "body": 3}', "not a sealed JSON document"),
        ('{"xxh3": "", "body": "{}"}', "its checksum does not match"),
    ],
)
def test_a_manifest_that_is_none_is_refused(saved: Path, content: str, told: str) -> None:
    (saved / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=f"{MANIFEST}: {told}"):
        Checkpoint(saved)


def forget(pieces: list[dict[str, Any]], *, left_out: int) -> None:
    del pieces[left_out]


def claim_one_twice(pieces: list[dict[str, Any]]) -> None:
    pieces[1]["offset"] = pieces[0]["offset"]  # what is there is equal


@pytest.mark.parametrize(
    "change",
    [partial(forget, left_out=0), partial(forget, left_out=1), claim_one_twice],
    ids=["first", "second", "twice"],
)
def test_bytes_that_no_piece_claims_are_not_taken_for_verified(
    saved: Path, change: Callable[[list[dict[str, Any]]], None]
) -> None:
    body = read_json(saved / MANIFEST)
    change(body["files"][0]["pieces"])
    (saved / MANIFEST).unlink()
    write_json(saved / MANIFEST, body)
    with pytest.raises(CheckpointError, match="pieces do not cover the file"):
        Checkpoint(saved).verify()


def test_what_is_read_is_checked_piece_by_piece_though_nobody_verified_the_file(saved: Path) -> None:
    file = saved / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    checkpoint = Checkpoint(saved)
    assert torch.equal(checkpoint.tensor("weight", "a"), torch.ones(4))
    with pytest.raises(CheckpointError, match="weight b does not match its checksum"):
        checkpoint.tensor("weight", "b")


def test_a_tensor_and_a_file_that_are_not_there_are_named(saved: Path) -> None:
    checkpoint, file = Checkpoint(saved), saved / "rank-00000.safetensors"
    assert checkpoint.bytes == file.stat().st_size and checkpoint.names("weight") == ["a", "b"]
    with pytest.raises(CheckpointError, match="holds no weight c: it is of another model"):
        checkpoint.tensor("weight", "c")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: No such file"):
        Checkpoint(saved)


@pytest.mark.parametrize("name", ["../rank-00000.safetensors", "/etc/passwd", "..", "", "a\0", "a\ud800"])
def test_a_manifest_that_points_outside_of_its_directory_is_refused(run: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="outside"):
        Checkpoint(reseal(run, lambda body: body["files"][0].update(name=name)))


def test_a_checkpoint_of_another_format_is_refused_by_its_number(run: Path) -> None:
    with pytest.raises(CheckpointError, match=f"checkpoint format {FORMAT + 1}, this version reads"):
        Checkpoint(reseal(run, lambda body: body.update(format=FORMAT + 1)))
