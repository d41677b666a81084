"""A model over an evaluation set: what is kept of each image, in which time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coatnet.config import UserError
from coatnet.runtime.ranks import Ranks
from data_pipeline.open_corpus import open_corpus
from finetune.classifier import Classifier, open_classifier
from finetune.evaluation.measure import Measurement, measure
from finetune.evaluation.predictions import Predictions
from finetune.handover.certificate import OnImages
from finetune.prediction import load_square, prepare

IMAGES = 23


@pytest.fixture(scope="module")
def classifier(exported: Path) -> Classifier:
    return open_classifier(str(exported))


@pytest.fixture(scope="module")
def measured(classifier: Classifier, photos: Path) -> Callable[..., Measurement]:
    def run(data: Path = photos, **options: object) -> Measurement:
        corpus = open_corpus(data)
        given = {"batch": 8, "ranks": Ranks.single(), **options}
        return measure(classifier.model, corpus, classifier.augment, **given)  # type: ignore[arg-type]

    return run


def test_time_in_the_model_is_a_part_of_the_whole(measured: Callable[..., Measurement]) -> None:
    found = measured()
    assert 0 < found.model_seconds < found.seconds < 60 and len(found.predictions) == IMAGES


def test_each_image_has_the_loss_the_guess_and_the_confidence_of_its_own_logits(
    classifier: Classifier, measured: Callable[..., Measurement], photos: Path
) -> None:
    found, files = measured().predictions, sorted(photos.glob("*/*.jpg"))
    squares = torch.stack([load_square(file.read_bytes(), classifier) for file in files])
    with torch.no_grad():
        shares = classifier.model(prepare(squares, classifier)).double().softmax(dim=1)
    labels = torch.tensor([sorted(classifier.names).index(file.parent.name) for file in files])
    assert isinstance(found, Predictions) and found.label.tolist() == labels.tolist()
    assert found.top.tolist() == shares.argsort(dim=1, descending=True).tolist()
    assert found.confidence == pytest.approx(shares.amax(dim=1), rel=1e-4)
    assert found.loss == pytest.approx(-shares[range(IMAGES), labels].log(), rel=1e-4, abs=1e-6)


def test_bf16_rounds_the_logits(measured: Callable[..., Measurement]) -> None:
    whole, rounded = measured(), measured(precision="bf16")
    assert (whole.predictions.loss != rounded.predictions.loss).all()


def test_the_model_is_asked_in_evaluation_whatever_it_was_left_in(
    classifier: Classifier, measured: Callable[..., Measurement]
) -> None:
    before = measured().predictions
    classifier.model.train()
    after = measured().predictions
    assert (before.loss == after.loss).all() and not classifier.model.training


def test_a_set_of_which_no_image_can_be_read_is_refused_with_the_first_reason(
    measured: Callable[..., Measurement], tmp_path: Path
) -> None:
    for name in ("amber", "blue", "green"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the 3 images to evaluate can be read; the first: .*no"):
        measured(tmp_path)


def test_logits_that_are_not_finite_are_an_infinite_loss_and_no_guess(
    classifier: Classifier, photos: Path
) -> None:
    def model(images: torch.Tensor) -> torch.Tensor:
        logits = classifier.model(images)
        logits[0, 1] = torch.nan
        return logits

    found = measure(
        OnImages(model), open_corpus(photos), classifier.augment, batch=8, ranks=Ranks.single()
    ).predictions
    assert isinstance(found, Predictions)
    lost = found.guess < 0
    assert lost.sum() == 3, "the first of each batch"
    assert (found.loss[lost] == torch.inf).all() and not found.confidence[lost].any()
    assert (found.confidence[~lost] > 1 / 3).all() and not found.correct[lost].any()
