"""Several labels per image: the commands around a model for them; their figures have a file of their own."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coatnet.checkpoint.inspection import check_model
from coatnet.checkpoint.weights import Weights, export_safetensors, load_weights
from coatnet.config import UserError
from coatnet.model.config import ModelConfig
from coatnet.runtime.ranks import Ranks
from coatnet.training.calendar import Calendar
from coatnet.training.sections import LossConfig, SaveConfig
from data_pipeline.config import CorpusConfig, DataConfig
from data_pipeline.first_look import check_best, look_at_data
from data_pipeline.open_corpus import open_corpus
from data_pipeline.sharding.sharder import shard_corpus
from finetune.classifier import open_classifier
from finetune.config import FinetuneConfig, FinetuneTrainConfig
from finetune.demo.answer import make_answer
from finetune.evaluation.request import EvaluationRequest, evaluate
from finetune.evaluation.sources import check_evaluation_set
from finetune.evaluation.table import print_reports
from finetune.evaluation.write import write_reports
from finetune.handover.export import export_model
from finetune.prediction import predict_files

IMAGES = 23


@pytest.fixture(scope="module")
def model(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a run with the sigmoid loss would leave it."""
    found = load_weights(exported)
    evaluated = {"map": 0.25, "precision1": 0.5, "at": found.facts["samples_seen"], "image_size": 64}
    facts = {**found.facts, "loss": "sigmoid", "evaluation": evaluated}
    weights = Weights(found.model, found.tensors, found.classes, facts)
    return export_safetensors(weights, tmp_path_factory.mktemp("multi") / "model")


def shard(jpeg: Callable[..., bytes], folder: Path, classes: list[str]) -> Path:
    """Image n shows the classes among (amber, blue, green) whose bit is set in n mod 7 + 1."""
    folder.mkdir()
    lines = [
        {
            "bytes": base64.b64encode(jpeg(number)).decode(),
            "labels": {
                name: 1.0
                for bit, name in enumerate(("amber", "blue", "green"))
                if name in classes and (number % 7 + 1) >> bit & 1
            }
            or {classes[0]: 0.25},
        }
        for number in range(IMAGES)
    ]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shard_corpus(folder / "table.jsonl", folder / "shards", quiet=True)
    return folder / "shards"


@pytest.fixture(scope="module")
def tagged(jpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(jpeg, tmp_path_factory.mktemp("tagged") / "all", ["amber", "blue", "green"])


def report(model: Path, data: Path, **options: Any) -> dict[str, Any]:
    request = EvaluationRequest(
        **{"model": str(model), "data": str(data), "sizes": [], "batch": 5, **options}
    )
    return evaluate(request, ranks=Ranks())[0]


def test_evaluate_counts_every_image_once_whatever_the_batch(model: Path, tagged: Path) -> None:
    found = [report(model, tagged, batch=batch) for batch in (64, 1, 7)]
    assert found[0]["samples"] == IMAGES and found[0]["label_kind"] == "multi"
    assert found[0]["labels"] == sum(bin(number % 7 + 1).count("1") for number in range(IMAGES))
    assert 0 < found[0]["map"] < 1 and found[0]["map_interval"][0] < found[0]["map"]
    assert "top1" not in found[0] and "confusion" not in found[0] and "most_confused" not in found[0]
    for other in found[1:]:
        for key in ("map", "map_interval", "map_micro", "map_micro_interval", "precision1", "non_finite"):
            assert other[key] == found[0][key], key
        assert other["loss"] == pytest.approx(found[0]["loss"], abs=1e-5)
        assert other["ece"] == pytest.approx(found[0]["ece"], abs=1e-6)


@pytest.mark.slow
def test_the_table_and_the_files_have_no_confusion_and_the_plot_is_of_map(
    model: Path,
    tagged: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    request = EvaluationRequest(str(model), str(tagged), [32, 64], confusion=True)
    reports = evaluate(request, ranks=Ranks())
    print_reports(reports)
    write_reports(reports, tmp_path)
    said = capsys.readouterr().out
    assert "mAP" in said and "precision@1" in said and f"{reports[1]['map']:.2%}" in said
    assert "weakest: " in said and "confused" not in said and "…" not in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "evaluation.json",
        "classes-32.csv",
        "classes-64.csv",
        "resolutions.png",
    }
    assert (tmp_path / "classes-64.csv").read_text().startswith("class,samples,ap,guessed,right,expected\n")


def test_classes_match_by_name_and_those_that_the_data_lack_are_not_judged(
    model: Path, jpeg: Callable[..., bytes], tmp_path: Path, tagged: Path
) -> None:
    two = shard(jpeg, tmp_path / "two", ["amber", "green"])
    found, whole = report(model, two), report(model, tagged)
    assert found["judged_among"] == 2
    ours = {row["class"]: row["ap"] for row in found["per_class"]}
    assert ours["green"] == {row["class"]: row["ap"] for row in whole["per_class"]}["green"]
    with pytest.raises(UserError, match="'red' is not among them"):
        report(model, shard(jpeg, tmp_path / "red", ["red", "green"]))


def test_reassessed_labels_need_one_guess_per_image(model: Path, tagged: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[[0]]")
    with pytest.raises(UserError, match="--real judges one guess per image, but a corpus has several labels"):
        check_evaluation_set(tagged, real=tmp_path / "real.json", model=check_model(model, weights="auto"))
    with pytest.raises(UserError, match="--real judges one guess per image"):
        report(model, tagged, real=str(tmp_path / "real.json"))


def test_one_label_per_image_is_judged_by_the_models_own_probabilities(
    exported: Path, model: Path, photos: Path
) -> None:
    softmax, sigmoid = report(exported, photos), report(model, photos)
    assert sigmoid["top1"] == softmax["top1"] and sigmoid["most_confused"] == softmax["most_confused"]
    assert sigmoid["loss"] != softmax["loss"] and sigmoid["ece"] != softmax["ece"]


def test_predict_and_the_demo_say_sigmoids(model: Path, exported: Path, photos: Path) -> None:
    file = next(photos.rglob("*.jpg"))
    classifier = open_classifier(str(model))
    rows = predict_files(classifier, [file], top=3, batch=1)[0]["guesses"]
    shown = make_answer(classifier)(file.read_bytes())["guesses"]
    shares = {row["class"]: row["probability"] for row in rows}
    assert shares == pytest.approx({row["class"]: row["probability"] for row in shown}, abs=1e-5)
    assert sum(shares.values()) != pytest.approx(1.0, abs=1e-3)
    softmax = predict_files(open_classifier(str(exported)), [file], top=3, batch=1)[0]["guesses"]
    odds = {name: share / (1 - share) for name, share in shares.items()}
    assert [row["class"] for row in softmax] == [row["class"] for row in rows]
    assert [row["probability"] for row in softmax] == pytest.approx(
        [odds[row["class"]] / sum(odds.values()) for row in softmax], rel=1e-5
    )


def test_the_certificate_compares_map_and_the_card_says_how_logits_are_read(
    model: Path, exported: Path, tagged: Path, tmp_path: Path
) -> None:
    (certificate,) = export_model(str(model), tmp_path, formats=["safetensors"], data=str(tagged))
    assert certificate["map"] == certificate["exported_map"] == report(model, tagged)["map"]
    assert certificate["differing_guesses"] == 0 and "top1" not in certificate
    card = (tmp_path / "README.md").read_text()
    assert "the sigmoid of a logit is the probability" in card
    assert "{type: mean_average_precision, value: 0.2500, name: mAP}" in card
    assert open_classifier(str(tmp_path)).loss == "sigmoid", "it is handed on"
    export_model(str(exported), tmp_path / "softmax", formats=["safetensors"])
    assert "the softmax of the logits" in (tmp_path / "softmax" / "README.md").read_text()


def test_a_description_with_another_loss_is_refused(exported: Path, tmp_path: Path) -> None:
    found = load_weights(exported)
    found.facts["loss"] = ["softmax"]
    with pytest.raises(UserError, match=r"loss is \"\['softmax'\]\"; allowed: softmax, sigmoid"):
        open_classifier(str(export_safetensors(found, tmp_path / "odd")))


def test_a_figure_that_no_evaluation_has_and_a_loss_for_one_label_are_told_at_the_start(
    tagged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = FinetuneConfig(
        model=ModelConfig(),
        data=DataConfig(train=[CorpusConfig(str(tagged))], evaluate=str(tagged)),
        train=FinetuneTrainConfig(duration="2 steps", global_batch=2, micro_batch=2),
    )
    sigmoid = replace(config, loss=LossConfig("sigmoid"), save=SaveConfig(best="map"))
    look_at_data(sigmoid, make_calendar=Calendar.make)
    assert capsys.readouterr().err == ""
    look_at_data(config, make_calendar=Calendar.make)
    assert "several labels per image, and loss.name is 'softmax'" in capsys.readouterr().err
    for name in ("top1", "ema_map", "transfer_top1"):
        with pytest.raises(
            UserError, match=rf"save\.best is '{name}'; .*several .*: map, map_micro, precision1, null$"
        ):
            look_at_data(replace(sigmoid, save=SaveConfig(best=name)), make_calendar=Calendar.make)
    averaged = replace(sigmoid, save=SaveConfig(best="ema_map"))
    look_at_data(averaged, make_calendar=Calendar.make, averaged=True)


def test_an_evaluation_of_one_label_each_beside_training_of_several_is_warned_of(
    tagged: Path, jpeg: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tmp_path / "single"
    for number, name in enumerate(("amber", "blue", "green")):
        (single / name).mkdir(parents=True)
        (single / name / "0.jpg").write_bytes(jpeg(number))
    for evaluated, warned in ((tagged, False), (single, True)):
        config = FinetuneConfig(
            model=ModelConfig(),
            data=DataConfig(train=[CorpusConfig(str(tagged))], evaluate=str(evaluated)),
            loss=LossConfig("sigmoid"),
            train=FinetuneTrainConfig(duration="2 steps", global_batch=2, micro_batch=2),
        )
        look_at_data(config, make_calendar=Calendar.make)
        assert ("sharded with --multi-label it is judged by mAP" in capsys.readouterr().err) == warned


def test_the_figure_of_the_best_is_checked_before_the_network_is_asked_and_where_nothing_is_evaluated(
    tagged: Path,
) -> None:
    """What lies behind a URL is opened by the ranks, which check it as well, before a step."""
    config = FinetuneConfig(model=ModelConfig(), save=SaveConfig(best="top1"))
    for train in (str(tagged), "https://host.invalid/shards"):
        data = DataConfig(train=[CorpusConfig(train)])
        with pytest.raises(UserError, match=r"is 'top1'; allowed here, without data\.evaluate: null"):
            look_at_data(replace(config, data=data), make_calendar=Calendar.make)
    remote = DataConfig(train=[CorpusConfig("https://host.invalid/shards")], evaluate=str(tagged))
    with pytest.raises(UserError, match=r"is 'top1'; allowed here, with several labels .*: map, "):
        look_at_data(replace(config, data=remote), make_calendar=Calendar.make)
    with pytest.raises(UserError, match=r"is 'top1'; allowed here, with several labels .*: map, "):
        check_best(config, open_corpus(tagged))


def test_patience_without_evaluations_or_beside_another_best_figure_is_refused(
    tagged: Path, photos: Path
) -> None:
    config = FinetuneConfig(model=ModelConfig(), train=FinetuneTrainConfig(patience=3))
    with pytest.raises(UserError, match=r"train\.patience is 3; allowed without data\.evaluate: 0"):
        check_best(config, None)
    for best, data in (("top5", photos), ("precision1", tagged)):
        with pytest.raises(UserError, match=rf"save\.best is '{best}'; allowed with train\.patience"):
            check_best(replace(config, save=SaveConfig(best=best)), open_corpus(data))
    for allowed, data in ((None, tagged), ("map", tagged), ("top1", photos)):
        check_best(replace(config, save=SaveConfig(best=allowed)), open_corpus(data))
