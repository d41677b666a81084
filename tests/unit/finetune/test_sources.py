"""The forms in which ImageNet's evaluation sets lie about, each in a small imitation with known answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatnet.checkpoint.inspection import check_model
from coatnet.checkpoint.weights import Weights, export_safetensors, load_weights
from coatnet.config import UserError
from coatnet.runtime.ranks import Ranks
from finetune import cli
from finetune.evaluation.request import EvaluationRequest, evaluate
from finetune.evaluation.sources import check_evaluation_set, open_evaluation_set, read_real_labels

SYNSETS = ["n01440764 tench", "n01443537 goldfish", "n01484850 shark"]
IMAGES = 12


@pytest.fixture(scope="module")
def model(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with names as ImageNet has them."""
    weights = load_weights(exported)
    weights.classes = SYNSETS
    return export_safetensors(
        Weights(weights.model, weights.tensors, SYNSETS, weights.facts),
        tmp_path_factory.mktemp("imagenet") / "model",
    )


@pytest.fixture(scope="module")
def flat(jpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve validation images in one folder; image n belongs to class n mod 3."""
    folder = tmp_path_factory.mktemp("flat")
    for number in range(IMAGES):
        (folder / name(number)).write_bytes(jpeg(100 + number))
    return folder


def name(number: int) -> str:
    return f"ILSVRC2012_val_{number + 1:08d}.JPEG"


def in_folders(flat: Path, destination: Path, folders: list[str], *, classes: int = 3) -> Path:
    for number in range(IMAGES):
        if number % 3 < classes:
            (destination / folders[number % 3]).mkdir(parents=True, exist_ok=True)
            shutil.copy(flat / name(number), destination / folders[number % 3])
    return destination


def report(model: Path, data: Path, **options: Any) -> dict[str, Any]:
    request = EvaluationRequest(model=str(model), data=str(data), sizes=[], batch=5, **options)
    return evaluate(request, ranks=Ranks())[0]


def test_synset_folders_numbered_folders_and_a_flat_folder_give_one_answer(
    model: Path, flat: Path, tmp_path: Path
) -> None:
    synsets = report(model, in_folders(flat, tmp_path / "val", [one.split()[0] for one in SYNSETS]))
    numbered = report(model, in_folders(flat, tmp_path / "v2", ["0", "1", "2"]))
    lines = [f"{name(number)} {SYNSETS[number % 3].split()[0]}" for number in range(IMAGES)]
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    by_file = report(model, flat, labels=str(tmp_path / "val.txt"))
    (tmp_path / "numbers.txt").write_text("".join(f"{name(n)} {n % 3}\n" for n in range(IMAGES)))
    by_number = report(model, flat, labels=str(tmp_path / "numbers.txt"))
    assert synsets["samples"] == IMAGES
    assert 0 < synsets["top1"] < 1, "a model that is always right or wrong tells nothing"
    for other in (numbered, by_file, by_number):
        assert (other["samples"], other["top1"], other["top5"]) == (IMAGES, synsets["top1"], synsets["top5"])
        assert other["loss"] == pytest.approx(synsets["loss"], abs=1e-6)


def test_a_label_that_two_classes_of_the_model_answer_to_is_refused(flat: Path, tmp_path: Path) -> None:
    classes = [*SYNSETS, "n01440764 another tench"]
    (tmp_path / "val.txt").write_text(f"{name(0)} n01443537\n{name(1)} n01440764\n")
    with pytest.raises(UserError, match="the model knows two classes as 'n01440764'"):
        open_evaluation_set(flat, labels=tmp_path / "val.txt", classes=classes)
    (tmp_path / "val.txt").write_text(f"{name(0)} n01443537\n{name(1)} 3\n")
    opened = open_evaluation_set(flat, labels=tmp_path / "val.txt", classes=classes)
    assert opened.class_counts().tolist()[:4] == [0, 1, 0, 1], "a number says which"


def test_a_label_file_that_names_an_image_twice_is_refused_since_it_would_count_twice(
    flat: Path, tmp_path: Path
) -> None:
    (tmp_path / "val.txt").write_text(f"{name(0)} 1\n{name(1)} 2\n{name(0)} 0\n")
    with pytest.raises(UserError, match=rf"val\.txt:3: '{name(0)}' has a label already"):
        open_evaluation_set(flat, labels=tmp_path / "val.txt", classes=SYNSETS)


@pytest.mark.parametrize("text", ["9" * 5000, "1" * 30, "-1", "²", ""])
def test_a_label_that_is_no_number_of_a_class_is_named(text: str, flat: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text(f"{name(0)} {text}\n")
    with pytest.raises(UserError, match=r"val\.txt:1: .* is neither a class nor a number below 3"):
        open_evaluation_set(flat, labels=tmp_path / "val.txt", classes=SYNSETS)


@pytest.mark.parametrize(
    "text", [f"[[{'9' * 5000}]]", "[[-1]]", "[[true]]", "[[1.0]]", "[" * 100_000, "{}", "x"]
)
def test_reassessed_labels_of_another_form_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(
        UserError, match=r"real\.json: (is not JSON|expected a list of lists of class numbers)"
    ):
        read_real_labels(tmp_path / "real.json")


def test_images_that_reassessed_labels_do_not_know_are_told_before_anything_is_evaluated(
    model: Path, flat: Path, tmp_path: Path
) -> None:
    data = in_folders(flat, tmp_path / "val", [one.split()[0] for one in SYNSETS])
    real, described = tmp_path / "real.json", check_model(model)
    real.write_text(json.dumps([[0]] * (IMAGES - 1)))
    with pytest.raises(UserError, match=rf"{name(IMAGES - 1)}' is not an image of ImageNet's validation set"):
        check_evaluation_set(data, real=real, model=described)
    real.write_text(json.dumps([[3]] * IMAGES))
    with pytest.raises(UserError, match="up to 3; this set is judged among 3"):
        check_evaluation_set(data, real=real, model=described)
    real.write_text(json.dumps([[2]] * IMAGES))
    check_evaluation_set(data, real=real, model=described)


def test_files_that_the_label_file_leaves_out_are_told(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "val.txt"
    labels.write_text("".join(f"{name(number)} 0\n" for number in range(IMAGES)))
    check_evaluation_set(flat, labels=labels, real=None)
    assert capsys.readouterr().err == ""
    labels.write_text("".join(f"{name(number)} 0\n" for number in range(3)))
    check_evaluation_set(flat, labels=labels, real=None)
    assert f"no label for {IMAGES - 3} of {IMAGES} files" in capsys.readouterr().err


def test_a_set_of_some_classes_is_judged_among_these_alone(model: Path, flat: Path, tmp_path: Path) -> None:
    some = report(model, in_folders(flat, tmp_path / "a", [one.split()[0] for one in SYNSETS], classes=2))
    assert some["judged_among"] == 2 and some["samples"] == 8
    assert some["top5"] == 1.0, "there are only two classes to guess"


def test_reassessed_labels_count_any_right_answer_and_leave_out_images_without(
    model: Path, flat: Path, tmp_path: Path
) -> None:
    data = in_folders(flat, tmp_path / "val", [one.split()[0] for one in SYNSETS])
    (tmp_path / "real.json").write_text(json.dumps([[0, 1, 2]] * 6 + [[]] * (IMAGES - 6)))
    assert report(model, data, real=str(tmp_path / "real.json"))["real_top1"] == 1.0
    (tmp_path / "real.json").write_text(json.dumps([[number % 3] for number in range(IMAGES)]))
    found = report(model, data, real=str(tmp_path / "real.json"))
    assert found["real_top1"] == found["top1"]


def test_a_class_that_the_model_does_not_know_is_an_error(model: Path, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="n09999999"):
        report(model, in_folders(flat, tmp_path / "val", ["n01440764", "n01443537", "n09999999"]))


def test_a_set_without_a_readable_image_is_an_error_that_names_the_first(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "val"
    for one in SYNSETS:
        (data / one.split()[0]).mkdir(parents=True)
        (data / one.split()[0] / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 3 images to evaluate can be read; the first: .*broken"):
        report(model, data)


def test_a_destination_without_room_is_named_and_the_figures_are_printed_all_the_same(
    model: Path, flat: Path, tmp_path: Path, mounted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = in_folders(flat, tmp_path / "val", [one.split()[0] for one in SYNSETS])
    with mounted(tmp_path / "small", "size=8k") as small:
        (small / "filling").write_bytes(bytes(4096))
        with pytest.raises(OSError, match="No space") as refused:
            cli.evaluate(model, str(data), destination=small, as_json=True)
        assert str(refused.value.filename).startswith(f"{small}/")
        assert all(file.stat().st_size for file in small.iterdir()), "nothing is there by halves"
    assert json.loads(capsys.readouterr().out)[0]["samples"] == IMAGES
