"""Each export opens in its own ecosystem and gives the same answers; its certificate says so."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coatnet.checkpoint.weights import Weights, export_safetensors, load_weights
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.runtime.ranks import Ranks
from data_pipeline.open_corpus import open_corpus
from finetune import cli
from finetune.classifier import Classifier, open_classifier
from finetune.evaluation.measure import measure
from finetune.handover.card import model_card
from finetune.handover.certificate import TOLERANCE, ask, certify, fixed_batch
from finetune.handover.export import export_model, print_certificates


def odd_batch(px: int = 64, *, images: int = 7) -> torch.Tensor:
    """A batch of another size than the export was made with."""
    return torch.randn(images, 3, px, px, generator=torch.Generator().manual_seed(9))


def own_answers(path: Path, images: torch.Tensor) -> torch.Tensor:
    classifier = open_classifier(str(path))
    with torch.inference_mode():
        return classifier.model(images)


def test_safetensors_open_in_their_own_reader_and_hold_the_same_tensors(
    exported: Path, tmp_path: Path
) -> None:
    (certificate,) = export_model(str(exported), tmp_path / "out", formats=["safetensors"])
    assert certificate["max_logit_difference"] == 0.0
    assert json.loads((tmp_path / "out" / "certificate-safetensors.json").read_text()) == certificate
    theirs, ours = load_file(tmp_path / "out" / "model.safetensors"), load_weights(exported).tensors
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["classes"] == ["amber", "blue", "green"]


def test_whoever_may_read_other_new_files_may_read_exported_weights(exported: Path, tmp_path: Path) -> None:
    export_model(str(exported), tmp_path, formats=["safetensors"])
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == modes["README.md"]


@pytest.mark.slow
def test_onnx_runs_in_onnxruntime_at_any_batch_size(exported: Path, photos: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (certificate,) = export_model(str(exported), tmp_path, formats=["onnx"], data=str(photos))
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert certificate["accepted"] and certificate["differing_guesses"] == 0
    assert certificate["top1"] == certificate["exported_top1"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for images in (odd_batch(), odd_batch(images=1)):
        theirs = session.run(["logits"], {"images": images.numpy()})[0]
        assert np.abs(theirs - own_answers(exported, images).numpy()).max() <= TOLERANCE


@pytest.mark.slow
def test_onnx_weights_too_large_for_a_protobuf_lie_in_a_file_that_the_graph_names(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    with monkeypatch.context() as small:  # as CoAtNet-5, -6 and -7 exceed the true one
        small.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
        (certificate,) = export_model(str(exported), out, formats=["onnx"])
    assert sorted(certificate["files"]) == ["model.onnx", "model.onnx.data"]
    assert not [file for file in out.iterdir() if file.name.startswith(".")]
    moved = shutil.copytree(out, tmp_path / "elsewhere")
    shutil.rmtree(out)
    session = onnxruntime.InferenceSession(str(moved / "model.onnx"), providers=["CPUExecutionProvider"])
    images = odd_batch()
    theirs = session.run(["logits"], {"images": images.numpy()})[0]
    assert np.abs(theirs - own_answers(exported, images).numpy()).max() <= TOLERANCE


def test_a_model_without_a_last_layer_is_refused_where_it_should_classify(
    exported: Path, tmp_path: Path
) -> None:
    weights = load_weights(exported)
    features = {name: tensor for name, tensor in weights.tensors.items() if "logits" not in name}
    export_safetensors(replace(weights, tensors=features), tmp_path / "features")
    with pytest.raises(UserError, match=r"features: holds no last layer \(head.logits.weight\)"):
        open_classifier(str(tmp_path / "features"))


@pytest.mark.slow
def test_torch_export_opens_without_this_code_and_at_another_resolution(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    (certificate,) = export_model(str(exported), tmp_path, formats=["torch_export"], px=96, data=str(photos))
    assert certificate["accepted"] and certificate["images"] == [4, 3, 96, 96]
    assert certificate["differing_guesses"] == 0 and certificate["top1"] == certificate["exported_top1"]
    loaded = torch.export.load(tmp_path / "model.pt2")
    graphs = [each.graph for each in loaded.graph_module.modules() if isinstance(each, torch.fx.GraphModule)]
    called = [node.target for graph in graphs for node in graph.nodes]
    operators = {each.namespace for each in called if isinstance(each, torch._ops.OpOverload)}
    assert operators == {"aten"}, "operators of ours would be known here alone"
    program, images = loaded.module(), odd_batch(96)
    assert (program(images) - own_answers(exported, images)).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("px", [64, 96])
def test_timm_opens_the_state_dict_and_gives_equal_logits(
    timm: Any, exported: Path, tmp_path: Path, px: int
) -> None:
    (certificate,) = export_model(str(exported), tmp_path, formats=["timm"], px=px)
    assert certificate["accepted"]
    shutil.move(tmp_path / "timm", tmp_path / "handed on")
    peer = timm.create_model(f"local-dir:{tmp_path / 'handed on'}", pretrained=True).eval()
    images = odd_batch(px)
    with torch.inference_mode():
        assert (peer(images) - own_answers(exported, images)).abs().max() <= TOLERANCE
    assert peer.pretrained_cfg["label_names"] == ["amber", "blue", "green"]


@pytest.mark.slow
def test_timm_is_told_how_a_model_wants_its_images(timm: Any, exported: Path, tmp_path: Path) -> None:
    export_model(str(exported), tmp_path, formats=["timm"])
    wanted = open_classifier(str(exported)).augment
    assert wanted.evaluate_resize == "whole"
    peer = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    told = timm.data.resolve_model_data_config(peer)
    assert told["input_size"] == (3, wanted.image_size, wanted.image_size)
    assert [list(told["mean"]), list(told["std"])] == [wanted.mean, wanted.std]
    assert (told["interpolation"], told["crop_mode"]) == (wanted.interpolation, "squash")
    assert told["crop_pct"] == 1.0


@pytest.mark.parametrize(("figure", "words"), [("top1", "top-1"), ("map", "mAP")])
def test_the_table_of_an_export_shows_both_accuracies(
    figure: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"format": "onnx", "files": {"model.onnx": ""}, "max_logit_difference": 1e-6}
    print_certificates([{**one, figure: 0.5, f"exported_{figure}": 0.25}, one])
    shown = capsys.readouterr().out
    assert "onnx" in shown and shown.count("model.onnx") == 2 and "1.0e-06" in shown
    assert words in shown and "50.00%" in shown and "25.00%" in shown and shown.count("–") == 2


def test_an_export_whose_answers_differ_is_not_accepted(exported: Path, tmp_path: Path) -> None:
    classifier = open_classifier(str(exported))

    def wrong(images: torch.Tensor) -> torch.Tensor:
        return classifier.model(images) + 1e-3

    certificate = certify("onnx", wrong, ask(classifier, data=None), folder=tmp_path, files=[], notes={})
    assert not certificate["accepted"]
    assert certificate["max_logit_difference"] == pytest.approx(1e-3, rel=0.01)
    assert "onnx" not in model_card(classifier, [certificate]), "nor is it handed on"


def test_a_certificate_tells_the_models_own_accuracy_from_the_exports(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    classifier = open_classifier(str(exported))
    corpus, batch = open_corpus(str(photos)), dict[str, Any](batch=23, ranks=Ranks.single())
    own = measure(classifier.model, corpus, classifier.augment, **batch).predictions

    def next_class(images: torch.Tensor) -> torch.Tensor:
        return classifier.model(images).roll(1, dims=1)

    found = certify(
        "onnx", next_class, ask(classifier, data=str(photos)), folder=tmp_path, files=[], notes={}
    )
    assert found["differing_guesses"] == 23
    assert found["top1"] == (own.guess == own.label).mean()
    assert found["exported_top1"] == ((own.guess + 1) % 3 == own.label).mean() != found["top1"]


def test_a_form_that_cannot_hold_the_architecture_is_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    config = replace(tiny, mbconv_norm="layer")
    export_safetensors(Weights(config, dict(build_model(config, seed=0).state_dict())), tmp_path / "layer")
    with pytest.raises(UserError, match="mbconv_norm"):
        export_model(str(tmp_path / "layer"), tmp_path / "out", formats=["timm"])


def test_what_a_form_needs_is_missed_before_another_is_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"onnx needs onnx, onnxscript, .*: pip install 'coatnet\[onnx\]'"):
        cli.export(exported, tmp_path / "out", formats=["safetensors", "onnx"])
    with pytest.raises(UserError, match=r"timm needs .*torchvision, not installed here: pip install timm"):
        cli.export(exported, tmp_path / "out", formats=["safetensors", "timm"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fault", ["RuntimeError('operator torchvision::nms does not exist')", "ImportError('x')"]
)
def test_a_timm_that_cannot_be_imported_is_told_in_one_line(
    fault: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where torchvision is of another build than torch."""
    (tmp_path / "timm.py").write_text(f"raise {fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        UserError, match=r"which cannot be imported here \((operator torchvision::nms|x).*built for torch \d"
    ):
        export_model(str(exported), tmp_path / "out", formats=["safetensors", "timm"])
    assert not (tmp_path / "out").exists(), "told before another form is written"


def test_the_fixed_batch_is_the_same_everywhere() -> None:
    assert torch.equal(fixed_batch(64), fixed_batch(64))
    assert fixed_batch(64).shape == (4, 3, 64, 64)


def test_a_classifier_refuses_a_size_that_the_model_cannot_take(exported: Path) -> None:
    classifier: Classifier = open_classifier(str(exported))
    for px in (0, 31, 33, 100, 4128):
        with pytest.raises(UserError, match=r"exported: \d+ px; allowed: multiples of 32 up to 4,096"):
            classifier.at(px)
    assert [classifier.at(px).augment.image_size for px in (32, 96, 4096)] == [32, 96, 4096]
    resized = [classifier.at(64, resize=one).augment.evaluate_resize for one in (None, "center_crop")]
    assert resized == ["whole", "center_crop"]
    with pytest.raises(UserError, match=r"--resize: .*stretch"):
        classifier.at(64, resize="stretch")


def test_what_was_exported_for_another_size_opens_for_it_and_classes_without_names_are_numbers(
    exported: Path, tmp_path: Path
) -> None:
    export_model(str(exported), tmp_path, formats=["safetensors"], px=96)
    opened = open_classifier(str(tmp_path))
    assert opened.augment == open_classifier(str(exported), px=96).augment
    assert replace(opened, classes=None).names == ["0", "1", "2"]


@pytest.mark.parametrize(("form", "room"), [("torch_export", "40k"), ("safetensors", "128k")])
def test_an_export_that_finds_no_room_is_a_line_and_leaves_nothing(
    exported: Path, tmp_path: Path, mounted: Any, form: str, room: str
) -> None:
    with mounted(tmp_path / "small", f"size={room}") as small:
        with pytest.raises((UserError, OSError)) as refused:
            export_model(str(exported), small, formats=[form])
        assert "free" in str(refused.value) or "model.safetensors" in str(refused.value)
        assert not list(small.iterdir())


class Killed(BaseException):
    """Nothing of the program sees it, as nothing sees a SIGKILL."""


@pytest.mark.parametrize(
    "form",
    [
        "safetensors",
        pytest.param("timm", marks=pytest.mark.slow),  # loading timm takes seconds
        pytest.param("torch_export", marks=pytest.mark.slow),
        pytest.param("onnx", marks=pytest.mark.campaign),
    ],
)
def test_an_export_killed_over_an_earlier_one_leaves_no_certificate_beside_what_it_is_not_of(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, request: pytest.FixtureRequest
) -> None:
    if form == "timm":
        request.getfixturevalue("timm")
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    export_model(str(exported), out, formats=[form])
    files = set(out.rglob("*"))
    (left,) = (file for file in files if file.is_file() and file.suffix not in (".json", ".md"))
    whole = left.read_bytes()
    other = shutil.copytree(exported, tmp_path / "other")
    description = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**description, "classes": ["x", "y", "z"]}))

    def killed(self: Path, target: Path) -> Path:
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        export_model(str(other), out, formats=[form])
    monkeypatch.undo()
    left.with_name(f".{left.stem}.1.tmp{left.suffix}").write_text("a real kill clears nothing away")
    assert left.read_bytes() == whole, "the file of before is whole"
    assert not (out / f"certificate-{form}.json").exists()
    if form == "safetensors":
        with pytest.raises(UserError, match=r"config\.json"):
            load_weights(out)
    export_model(str(other), out, formats=[form])
    assert set(out.rglob("*")) == files, "nothing is left lying about"


def test_the_latency_benchmark_says_what_it_measured(load_benchmark: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("onnxruntime")
    benchmark = load_benchmark("export")
    ways = dict.fromkeys(("eager", "compiled", "onnxruntime"), torch.neg)
    row = benchmark.compare(ways, ModelConfig(), px=32, batch=2, rounds=2)
    assert row["largest_logit_difference"] == 0.0
    assert "coatnet_0 at 32 px, 2 images: torch eager 0.0" in benchmark.line(row)
