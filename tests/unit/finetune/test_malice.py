"""Files that others made to do harm are refused in one line within a second, and nothing of them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint.inspection import check_model
from coatnet.config import UserError
from coatnet.config.plain_text import one_line
from coatnet.runtime.class_names import read_class_names
from data_pipeline.decode.image_file import read_image_file
from data_pipeline.folder import FolderCorpus
from data_pipeline.record import BadSampleError
from finetune.classifier import open_classifier
from finetune.evaluation.sources import open_evaluation_set, read_real_labels
from finetune.handover.importing import import_model
from finetune.image_files import image_files, print_predictions
from finetune.prediction import predict_files

# A GIF of 65,535 × 65,535 pixels.
IMAGE_BOMB = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.proof,)


@contextmanager
def refused_at_once(*words: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        yield caught
    assert time.process_time() - began < 1.0
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.fixture
def victim(exported: Path, tmp_path: Path) -> Path:
    """A copy of a good model, to be tampered with."""
    return Path(shutil.copytree(exported, tmp_path / "victim"))


def test_a_pickle_named_safetensors_is_refused_and_not_run(victim: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (victim / "model.safetensors").write_bytes(pickle.dumps(Payload(proof)))
    with refused_at_once("not a safetensors file"):
        open_classifier(str(victim))
    with refused_at_once("not a safetensors file"):
        import_model(victim / "model.safetensors", tmp_path / "out", name="coatnet_0", px=64)
    assert not proof.exists()


def test_a_pickle_is_refused_without_trust_and_run_by_none(tmp_path: Path) -> None:
    proof, evil = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save({"head.fc.weight": Payload(proof)}, evil)
    with refused_at_once("--trust-pickle"):
        import_model(evil, tmp_path / "out", name="coatnet_0", px=64)
    with pytest.raises(UserError, match=r"not a file of tensors alone; nothing else is read$"):
        import_model(evil, tmp_path / "out", name="coatnet_0", px=64, trust_pickle=True)
    assert not proof.exists()


@pytest.mark.parametrize("claimed", [1 << 62, 1 << 40, 99_000_000])
def test_a_header_that_claims_more_than_there_is_is_refused(victim: Path, claimed: int) -> None:
    (victim / "model.safetensors").write_bytes(claimed.to_bytes(8, "little") + b"{" + b" " * 100)
    with refused_at_once("safetensors"):
        open_classifier(str(victim))


def one_tensor(**changes: Any) -> bytes:
    return json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}).encode()


@pytest.mark.parametrize(
    "header",
    {
        "larger than the file": one_tensor(shape=[1 << 40], data_offsets=[0, 1 << 42]),
        "a product of endless numbers": one_tensor(shape=[10**4000] * 900),
        "offsets that are no numbers": one_tensor(data_offsets=[0, "x"]),
        "negative": one_tensor(shape=[-1, -1]),
        "no number at all": one_tensor(shape=[float("nan")], data_offsets=[0, float("nan")]),
        "fewer bytes than the shape": one_tensor(shape=[2]),
        "two at one place": one_tensor()[:-1] + b"," + one_tensor()[1:].replace(b'"x"', b'"y"'),
        "one name twice": one_tensor()[:-1] + b"," + one_tensor(data_offsets=[4, 8])[1:],
        "nested without end": b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        "too long": b'{"a":[' + b"[]," * 2_000_000 + b"[]]}",
        "an element that is no type": one_tensor(dtype="EVIL"),
        "less than there is": one_tensor(),
        "a count of endless digits": one_tensor().replace(b"[1]", b"[" + b"1" * 5000 + b"]"),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_header_that_means_harm_is_refused(victim: Path, header: tuple[str, bytes]) -> None:
    content = header[1]
    (victim / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with refused_at_once("not a valid safetensors file"):
        check_model(victim)


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": [1, 10**9, 1, 1, 1]},
        {"widths": [10**6] * 5},
        {"image_size": 16384},
        {"num_classes": 10**12},
    ],
    ids=str,
)
def test_a_description_of_a_larger_model_than_the_tensors_make_is_refused(
    victim: Path, changes: dict[str, Any]
) -> None:
    config = json.loads((victim / "config.json").read_text())
    config["model"].update(changes)
    config["classes"] = None
    (victim / "config.json").write_text(json.dumps(config))
    with refused_at_once("describes a larger model"):
        check_model(victim)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pipes_and_devices_in_place_of_a_models_files_are_refused_without_waiting(
    victim: Path, name: str
) -> None:
    (victim / name).unlink()
    os.mkfifo(victim / name)
    with refused_at_once("is not a regular file"):
        check_model(victim)
    (victim / name).unlink()
    (victim / name).symlink_to("/dev/zero")
    with refused_at_once("is not a regular file"):
        check_model(victim)


def test_pipes_and_devices_in_place_of_lists_and_images_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe, endless = tmp_path / "pipe.jpg", tmp_path / "endless.jpg"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless):
        with refused_at_once("is not a regular file"):
            read_class_names(path)
        with refused_at_once("is not a regular file"):
            open_evaluation_set(tmp_path, labels=path, classes=["amber"])
        with refused_at_once("is not a regular file"):
            read_real_labels(path)
        with pytest.raises(OSError, match="is not a regular file"):
            read_image_file(path)
    (tmp_path / "labels.txt").write_text("pipe.jpg amber\nendless.jpg amber\n")
    corpus = open_evaluation_set(tmp_path, labels=tmp_path / "labels.txt", classes=["amber"])
    for index in range(2):
        with pytest.raises(BadSampleError, match="is not a regular file"):
            corpus.read(0, index)


def test_a_list_of_millions_of_names_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"a\n" * 4_000_000)
    with refused_at_once("is larger than 4 MiB"):
        read_class_names(tmp_path / "names.txt")


def test_names_of_files_and_folders_do_not_command_the_terminal(
    exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(photos.rglob("*.jpg"))
    shutil.copy(image, tmp_path / "a\x1b[31mb\u202ec.jpg")
    (tmp_path / "b\x1b[31m.jpg").write_bytes(b"no image")
    print_predictions(predict_files(open_classifier(str(exported)), image_files([tmp_path]), top=1, batch=1))
    said, refused = capsys.readouterr()
    assert "\x1b" not in said + refused and "\u202e" not in said
    assert refused.count("\n") == 1 and "b\\x1b[31m.jpg: " in refused
    print_predictions([{"image": "bomb.png", "error": "limit: too large"}])
    assert capsys.readouterr() == ("", "bomb.png: limit: too large\n"), "no empty table"
    (tmp_path / "data" / "a\x1b[31mb").mkdir(parents=True)
    shutil.copy(image, tmp_path / "data" / "a\x1b[31mb")
    with refused_at_once("U+001B"):
        FolderCorpus.open(tmp_path / "data")
    assert one_line("two\nlines \x1b[31m") == "two lines \\x1b[31m"


def test_an_image_bomb_is_named_and_not_decoded(exported: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gif"
    bomb.write_bytes(IMAGE_BOMB)
    classifier = open_classifier(str(exported))
    began = time.process_time()
    (row,) = predict_files(classifier, [bomb], top=1, batch=1)
    assert time.process_time() - began < 1.0
    assert "65,535" in row["error"] or "65535" in row["error"]


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\rb", "a\u202eb", "", "x" * 501, "a\x00b"])
def test_class_names_that_would_fool_a_terminal_are_refused(name: str, victim: Path, tmp_path: Path) -> None:
    config = json.loads((victim / "config.json").read_text())
    config["classes"][1] = name
    (victim / "config.json").write_text(json.dumps(config))
    with refused_at_once("class 1"):
        open_classifier(str(victim))
    names = tmp_path / "classes.txt"
    names.write_bytes(f"good\n{name}\nother\n".encode())
    if name != "a\rb":
        with refused_at_once("class 1"):
            read_class_names(names)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg"])
def test_a_label_file_cannot_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(f"{name} amber\n")
    with refused_at_once("leads out of the folder"):
        open_evaluation_set(tmp_path, labels=tmp_path / "labels.txt", classes=["amber"])


def test_a_config_that_is_no_model_is_refused(victim: Path) -> None:
    for text in ("[]", "{}", "not json", '{"model": {"name": "coatnet_0", "run": "rm -rf"}}'):
        (victim / "config.json").write_text(text)
        with refused_at_once():
            open_classifier(str(victim))


@pytest.mark.parametrize("place", ["model", "augment"])
def test_what_a_config_holds_is_text_and_looks_up_no_environment_variable(
    place: str, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "tell nobody")
    config = json.loads((victim / "config.json").read_text())
    if place == "model":
        config["model"]["name"] = "${oc.env:SECRET}"
    else:
        config["facts"]["augment"]["mean"] = "${oc.env:SECRET}"
    (victim / "config.json").write_text(json.dumps(config))
    with refused_at_once("interpolations", "not allowed") as refused:
        open_classifier(str(victim))
    assert "tell nobody" not in str(refused.value)


@pytest.mark.parametrize("augment", [[1, 2], "x", 3], ids=str)
def test_preprocessing_that_is_none_is_refused(augment: Any, victim: Path) -> None:
    config = json.loads((victim / "config.json").read_text())
    config["facts"]["augment"] = augment
    (victim / "config.json").write_text(json.dumps(config))
    with refused_at_once("augment: expected keys and values"):
        open_classifier(str(victim))


def test_tensors_of_another_shape_are_named(victim: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(victim / "model.safetensors")
    tensors["head.norm.weight"] = torch.ones(7)
    save_file(tensors, victim / "model.safetensors")
    with refused_at_once("head.norm.weight", "(7,)"):
        open_classifier(str(victim))


def test_a_stream_of_bytes_is_no_image(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.jpg").write_bytes(io.BytesIO(bytes(range(256)) * 64).getvalue())
    (row,) = predict_files(open_classifier(str(exported)), [tmp_path / "noise.jpg"], top=1, batch=1)
    assert "error" in row


@pytest.mark.slow
def test_the_commands_refuse_in_one_line_before_torch_is_loaded(exported: Path, tmp_path: Path) -> None:
    proof, evil = tmp_path / "ran", tmp_path / "evil"
    shutil.copytree(exported, evil)
    (evil / "model.safetensors").write_bytes(pickle.dumps(Payload(proof)))
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Payload(proof)))
    (tmp_path / "names.txt").write_bytes(b"good\nb\x1b[31mad\n")
    (tmp_path / "labels.txt").write_text("../../etc/passwd amber\n")
    (tmp_path / "bomb.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{" + b" " * 100)
    (tmp_path / "bomb.gif").write_bytes(IMAGE_BOMB)
    good = exported / "model.safetensors"
    commands: list[tuple[str, tuple[str | Path, ...]]] = [
        ("not a safetensors file", ("evaluate", evil, tmp_path)),
        ("not a safetensors file", ("import", tmp_path / "bomb.safetensors", tmp_path / "out")),
        ("--trust-pickle", ("import", tmp_path / "w.pth", tmp_path / "out")),
        ("U+001B", ("import", good, tmp_path / "out", "--classes", tmp_path / "names.txt")),
        ("leads out", ("evaluate", exported, tmp_path, "--labels", tmp_path / "labels.txt")),
        ("pixels", ("predict", exported, tmp_path / "bomb.gif")),
    ]
    for words, command in commands:
        # As a blocked module torch cannot be imported: whoever tried would end in a traceback.
        code = "import sys; sys.modules['torch'] = None; from coatnet.cli import main; main()"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, timeout=250
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert words in done.stderr and "Traceback" not in done.stderr and not done.stdout, done.stderr
        assert done.returncode == (1 if command[0] == "predict" else 2)
        assert done.stderr.count("\n") == 1
        assert after.ru_utime - before.ru_utime < 1.0
    assert not proof.exists() and not (tmp_path / "out").exists()


def test_a_pickle_to_fine_tune_from_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from finetune.launch import launch

    proof, config = tmp_path / "ran", tmp_path / "config.yaml"
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Payload(proof)))
    config.write_text(f"init: {tmp_path / 'weights.pth'}\n")
    with refused_at_once("a pickle can run any program"):
        launch(str(config), [f"run.directory={tmp_path / 'run'}"])
    with refused_at_once("nowhere: neither a run directory, a checkpoint, nor an exported model"):
        launch(str(config), [f"run.directory={tmp_path / 'run'}", "init=nowhere"])
    (tmp_path / "weights.pth").rename(tmp_path / "weights.safetensors")
    with refused_at_once("not a safetensors file"):
        launch(str(config), [f"run.directory={tmp_path / 'run'}", f"init={tmp_path / 'weights.safetensors'}"])
    assert not proof.exists() and not (tmp_path / "run").exists()
