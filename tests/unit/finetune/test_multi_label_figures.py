"""Figures of several labels per image, from scores alone: precisions, their intervals, what is not finite."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from coatnet.config import UserError
from coatnet.runtime.memory import available_memory
from coatnet.runtime.ranks import Ranks
from coatnet.training.average_precision import drawn_average_precisions
from coatnet.training.losses import log_odds, make_loss, probabilities
from data_pipeline.augment_config import AugmentConfig
from finetune.evaluation import multi_label
from finetune.evaluation.measure import measure
from finetune.evaluation.multi_label import RESAMPLES, classes_of_multi_label, multi_label_figures
from finetune.evaluation.predictions import MultiLabelPredictions, join


def average_precision(scores: NDArray[Any], present: NDArray[Any]) -> float:
    """The sum over thresholds of (recall − the recall before) · precision."""
    area = before = 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        recall = present[chosen].sum() / present.sum()
        area += (recall - before) * present[chosen].mean()
        before = recall
    return area


@pytest.fixture(scope="module")
def some() -> MultiLabelPredictions:
    """Scores with many ties; the last class is never shown."""
    rng = np.random.default_rng(1)
    present = rng.random((60, 5)) < [0.1, 0.3, 0.5, 0.9, 0.0]
    scores = np.round(rng.normal(size=(60, 5)) + present, 1).astype(np.float32)
    loss = make_loss("sigmoid", per_sample=True)(torch.from_numpy(scores), torch.from_numpy(present))
    return MultiLabelPredictions(np.arange(60), loss.double().numpy(), present=present, scores=scores)


def test_every_figure_is_what_its_definition_says(some: MultiLabelPredictions) -> None:
    found, present, scores = multi_label_figures(some), some.present, some.scores
    each = [average_precision(scores[:, k], present[:, k]) for k in range(4)]
    assert found["map"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found["map_micro"] == pytest.approx(average_precision(scores.ravel(), present.ravel()), abs=1e-12)
    counts = {"samples": 60, "classes": 5, "judged_classes": 4, "labels": present.sum()}
    assert counts.items() <= found.items()
    assert found["precision1"] == np.mean([present[row, scores[row].argmax()] for row in range(60)])
    shares = 1 / (1 + np.exp(-scores.astype(np.float64)))
    entropy = -np.where(present, np.log(shares), np.log(1 - shares)).sum(axis=1)
    assert found["loss"] == pytest.approx(entropy.mean(), rel=1e-6)
    bins = np.minimum((shares * 15).astype(int), 14)
    gaps = [abs(shares[bins == b].sum() - present[bins == b].sum()) for b in range(15)]
    assert found["ece"] == pytest.approx(sum(gaps) / present.size, abs=1e-12)
    assert found["map_interval"] is found["map_micro_interval"] is None
    rows = classes_of_multi_label(some, names=list("abcde"))
    assert [row["ap"] for row in rows] == pytest.approx([*each, None], abs=1e-12)
    assert [row["samples"] for row in rows] == present.sum(axis=0).tolist()
    assert [row["guessed"] for row in rows] == (shares >= 0.5).sum(axis=0).tolist()
    assert [row["right"] for row in rows] == ((shares >= 0.5) & present).sum(axis=0).tolist()
    assert [row["expected"] for row in rows] == pytest.approx(shares.sum(axis=0), abs=1e-3)


@pytest.mark.slow
def test_average_precisions_are_those_of_scikit_learn(some: MultiLabelPredictions) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found = multi_label_figures(some)
    for mean, ours in (("macro", found["map"]), ("micro", found["map_micro"])):
        theirs = metrics.average_precision_score(some.present[:, :4], some.scores[:, :4], average=mean)
        if mean == "micro":
            theirs = metrics.average_precision_score(some.present, some.scores, average=mean)
        assert ours == pytest.approx(theirs, abs=1e-12), mean


@pytest.mark.parametrize("column", range(4))
def test_an_image_that_is_drawn_twice_counts_as_if_it_were_there_twice(
    some: MultiLabelPredictions, column: int
) -> None:
    times = torch.from_numpy(np.random.default_rng(2).integers(0, 3, size=(60, 4))).float()
    scores, present = some.scores[:, column], some.present[:, column]
    drawn = drawn_average_precisions(torch.from_numpy(scores), torch.from_numpy(present), times)
    for sample, found in enumerate(drawn):
        again = np.repeat(np.arange(60), times[:, sample].int().numpy())
        assert float(found) == pytest.approx(average_precision(scores[again], present[again]), abs=1e-12)


def test_a_class_that_is_never_shown_has_no_precision_in_any_sample() -> None:
    never = torch.zeros(5, dtype=torch.bool)
    assert drawn_average_precisions(torch.arange(5.0), never, torch.ones(5, 3)).isnan().all()


@pytest.mark.parametrize(("most_steps", "tolerance"), [(1024, 1e-12), (40, 0.02)])
def test_all_pairs_of_the_images_that_are_drawn_are_ranked_by_steps_of_their_scores(
    some: MultiLabelPredictions, monkeypatch: pytest.MonkeyPatch, most_steps: int, tolerance: float
) -> None:
    """Exactly where there are few scores, else nearly: a pass over all pairs for each sample is too slow."""
    monkeypatch.setattr(multi_label, "_MOST_STEPS", most_steps)
    monkeypatch.setattr(multi_label, "_BLOCK_IMAGES", 25)
    times = torch.from_numpy(np.random.default_rng(2).integers(0, 3, size=(60, 4))).float()
    for sample, found in enumerate(multi_label._drawn_of_all(some, times)):
        again = np.repeat(np.arange(60), times[:, sample].int().numpy())
        expected = average_precision(some.scores[again].ravel(), some.present[again].ravel())
        assert float(found) == pytest.approx(expected, abs=tolerance)


def test_intervals_hold_the_figure_and_shrink_with_the_number_of_images(some: MultiLabelPredictions) -> None:
    found = multi_label_figures(some, resamples=RESAMPLES)
    copies = [replace(some, index=some.index + 60 * copy) for copy in range(16)]
    more = multi_label_figures(join(copies), resamples=RESAMPLES)
    for name in ("map", "map_micro"):
        (low, high), (inner_low, inner_high) = (one[f"{name}_interval"] for one in (found, more))
        assert low < found[name] < high and low < inner_low < inner_high < high
        assert more[name] == pytest.approx(found[name], abs=1e-12)
        assert (inner_high - inner_low) == pytest.approx((high - low) / 4, rel=0.35)
    assert multi_label_figures(some, resamples=RESAMPLES) == found, "the draws are the same every time"


@pytest.mark.slow
def test_intervals_hold_the_truth_more_often_than_the_draws_own_quantiles() -> None:
    rng = np.random.default_rng(4)

    def draw(images: int) -> MultiLabelPredictions:
        present = rng.random((images, 12)) < 0.05
        scores = (rng.normal(size=(images, 12)) + 1.5 * present).astype(np.float32)
        return MultiLabelPredictions(np.arange(images), np.ones(images), present=present, scores=scores)

    truth, held, quantiles_held = multi_label_figures(draw(100_000))["map"], 0, 0
    for _ in range(40):
        found = multi_label_figures(draw(300), resamples=RESAMPLES)
        assert found["map_interval"] is not None
        low, high = found["map_interval"]
        held += low <= truth <= high
        quantiles_held += 2 * found["map"] - high <= truth <= 2 * found["map"] - low
    assert held >= 35 > quantiles_held, (held, quantiles_held)


@pytest.mark.slow
def test_with_few_positives_map_may_lie_above_its_interval_in_which_the_truth_is() -> None:
    rng = np.random.default_rng(4)

    def draw(images: int, *, classes: int) -> MultiLabelPredictions:
        present = rng.random((images, classes)) < 0.01
        scores = (rng.normal(size=present.shape) + 0.3 * present).astype(np.float32)
        return MultiLabelPredictions(np.arange(images), np.ones(images), present=present, scores=scores)

    truth, above, held = multi_label_figures(draw(50_000, classes=12))["map"], 0, 0
    for _ in range(20):
        found = multi_label_figures(draw(300, classes=60), resamples=RESAMPLES)
        low, high = found["map_interval"]
        above += found["map"] > high
        held += low <= truth <= high
    assert above >= 5 and held >= 18, (above, held)


def test_scores_that_would_not_fit_into_memory_are_refused_before_the_first_image() -> None:
    many: Any = SimpleNamespace(samples=10**9, classes=["x"] * 18_291, label_kind="multi")
    said = r"1,000,000,000 images of 18,291 classes: .* takes 340,696.4 GiB .*, and (.*) are free .* fewer"
    with pytest.raises(UserError, match=said) as refused:
        measure(torch.nn.Identity(), many, AugmentConfig(), batch=1, ranks=Ranks(local_world_size=2))
    told = re.search(said, str(refused.value))
    assert told is not None and 0 < float(told[1].replace(",", "")) <= available_memory().total / 2**30


def test_logits_that_are_not_finite_come_last_and_a_set_without_a_positive_has_figures() -> None:
    lost = MultiLabelPredictions(
        np.arange(2),
        np.array([np.inf, 1.0]),
        present=np.array([[True, False], [True, False]]),
        scores=np.array([[-np.inf, -np.inf], [0.0, 1.0]], dtype=np.float32),
    )
    found = multi_label_figures(lost)
    assert lost.guess.tolist() == [-1, 1]
    assert (found["non_finite"], found["precision1"], found["map"]) == (1, 0.0, 1.0)
    assert found["map_micro"] == pytest.approx((1 / 2 + 2 / 4) / 2) and found["loss"] == np.inf
    empty = multi_label_figures(replace(lost, present=np.zeros((2, 2), dtype=bool)), resamples=3)
    nothing = {"map": 0.0, "map_micro": 0.0, "judged_classes": 0, "map_interval": (0.0, 0.0)}
    assert nothing.items() <= empty.items()


def test_log_odds_are_what_makes_the_probabilities_of_either_loss() -> None:
    logits = torch.tensor([[3.0, -40.0, 1.0], [0.0, 0.0, 60.0]], dtype=torch.float64)
    for loss in ("softmax", "sigmoid"):
        torch.testing.assert_close(log_odds(logits, loss).sigmoid(), probabilities(logits, loss))
    assert log_odds(logits.float(), "softmax").isfinite().all(), "also where one class takes all"
    small = float(log_odds(logits, "softmax")[0, 1])
    assert small == pytest.approx(-43.1269, abs=1e-4), "it tells small ones apart"
