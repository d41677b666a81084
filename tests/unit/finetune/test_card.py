"""The model card beside an export, and the earlier exports that it tells of."""

from __future__ import annotations

import json
import os
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet.checkpoint.weights import Weights, export_safetensors, load_weights
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from finetune.classifier import open_classifier
from finetune.handover import export
from finetune.handover.card import model_card
from finetune.handover.certificate import ask
from finetune.handover.export import export_model


def test_the_card_has_the_hubs_metadata_and_certificates_hold_digests(exported: Path, tmp_path: Path) -> None:
    import hashlib

    import yaml

    (certificate,) = export_model(str(exported), tmp_path, formats=["safetensors"])
    for name, digest in certificate["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    card = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    (result,) = metadata.pop("model-index")[0]["results"]
    assert metadata == {
        "library_name": "coatnet",
        "pipeline_tag": "image-classification",
        "tags": ["coatnet"],
    }
    assert result["task"] == {"type": "image-classification"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.5, "name": "top-1"}]
    assert "amber, blue, green" in card and "model.safetensors" in card


def test_a_certificate_tells_of_what_it_is_and_the_card_lists_the_accepted_ones_in_one_order(
    exported: Path, tmp_path: Path
) -> None:
    classifier = open_classifier(str(exported))
    (kept,) = export_model(str(exported), tmp_path, formats=["safetensors"])
    assert (kept["format"], kept["accepted"], kept["tolerance"]) == ("safetensors", True, 1e-4)
    assert kept["images"] == [4, 3, 64, 64] and kept["data"] is None
    assert "torch" in kept["versions"] and kept["model"]["depths"] == [1, 1, 1, 1, 1] and "notes" in kept
    with torch.no_grad():
        classifier.model.head.logits.bias[0] += 1.0
    assert ask(classifier, data=None).weights != kept["weights"]
    given = [{**kept, "format": form, "accepted": form != "onnx"} for form in ("timm", "onnx", "safetensors")]
    card = model_card(classifier, given)
    rows = [line.split(" | ")[0] for line in card.partition("## Files")[2].splitlines() if "`model" in line]
    assert rows == ["| safetensors", "| timm"]
    lines = card.partition("---\n#")[2].splitlines()
    blocks = [number for number, line in enumerate(lines) if line.startswith(("#", "| form", "```json"))]
    assert len(blocks) == 5 and not any(lines[number - 1] for number in blocks), "else Markdown runs them on"
    assert "`model.safetensors`" in card and "| 0.0e+00 |" in card and "input: RGB, the whole" in card


@pytest.mark.parametrize("other", [{"px": 96}, {"samples_seen": 704}])
def test_the_card_claims_no_accuracy_that_was_measured_of_other_weights_or_at_another_size(
    exported: Path, tmp_path: Path, other: dict[str, int]
) -> None:
    found = load_weights(exported)
    found.facts |= {key: value for key, value in other.items() if key != "px"}
    model = export_safetensors(found, tmp_path / "model")
    export_model(str(model), tmp_path / "out", formats=["safetensors"], px=other.get("px"))
    assert "model-index" not in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_how_images_are_resized_and_names_twenty_classes_as_no_markup(exported: Path) -> None:
    classifier = open_classifier(str(exported))
    few, many = ([f"*{letter}*" for letter in letters] for letters in (string.ascii_letters[:20], "a" * 23))
    card = model_card(replace(classifier, classes=many), [])
    assert (
        card.count(r"\*a\*") == 20 and " and 3 more" in card and "the whole image resized to 64×64 px" in card
    )
    assert "more" not in model_card(replace(classifier, classes=few), [])
    cropped = replace(classifier.augment, evaluate_resize="center_crop", evaluate_crop=0.875)
    assert "the central square of 0.875 of the shorter side, resized" in model_card(
        replace(classifier, augment=cropped), []
    )
    told = json.loads(card.split("```json")[1].split("```")[0])
    assert told == {key: value for key, value in vars(classifier.model.config).items() if value is not None}


@pytest.mark.parametrize("top1", [float("nan"), 10**400, "0.99", None])
def test_the_card_claims_no_accuracy_that_is_no_number(exported: Path, top1: Any) -> None:
    facts = {"evaluation": {"top1": top1, "at": 640, "image_size": 64}, "samples_seen": 640}
    assert "model-index" not in model_card(replace(open_classifier(str(exported)), facts=facts), [])


@pytest.mark.parametrize("left", ["nested", "pipe", "list"])
def test_what_is_no_certificate_of_an_earlier_export_is_left_out_of_the_card(
    left: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = tmp_path / "certificate-onnx.json"
    if left == "pipe":
        os.mkfifo(certificate)
    else:
        certificate.write_text("[" * 100_000 if left == "nested" else "[]")
    export_model(str(exported), tmp_path, formats=["safetensors"])
    assert "certificate-onnx.json is of another model" in capsys.readouterr().err
    assert "| onnx |" not in (tmp_path / "README.md").read_text()


def test_a_form_that_is_refused_leaves_no_card_of_another_model_beside_the_forms_before_it(
    exported: Path, tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> Any:
        raise UserError("no onnx")

    monkeypatch.setitem(export._WRITERS, "onnx", refuse)
    export_model(str(exported), tmp_path / "out", formats=["safetensors"])
    named = Weights(tiny, dict(build_model(tiny).state_dict()), ["x", "y", "z"])
    other = export_safetensors(named, tmp_path / "other")
    with pytest.raises(UserError, match="no onnx"):
        export_model(str(other), tmp_path / "out", formats=["safetensors", "onnx"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "3 classes: x, y, z" in card and "| safetensors |" in card and "| onnx |" not in card


@pytest.mark.slow
def test_the_card_lists_what_earlier_exports_of_the_same_model_left_in_the_folder(
    timm: Any, exported: Path, tiny: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("safetensors", "timm"):
        export_model(str(exported), tmp_path / "out", formats=[form])
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("| safetensors |") == card.count("| timm |") == 1
    assert card.index("| safetensors |") < card.index("| timm |")
    assert "warning" not in capsys.readouterr().err
    tensors = dict(build_model(tiny, seed=5).state_dict())
    export_safetensors(Weights(tiny, tensors, ["amber", "blue", "green"]), tmp_path / "other")
    export_model(str(tmp_path / "other"), tmp_path / "out", formats=["safetensors"])
    assert "timm" not in (tmp_path / "out" / "README.md").read_text()
    assert "certificate-timm.json is of another model" in capsys.readouterr().err
