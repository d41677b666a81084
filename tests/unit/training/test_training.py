"""Losses, schedules, parameter groups, metrics and the moving average, against straightforward references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from coatnet.training.average_precision import Ranking
from coatnet.training.ema import Ema
from coatnet.training.losses import make_loss
from coatnet.training.metrics import MultiLabelMetrics, SingleLabelMetrics
from coatnet.training.optimizer import parameter_groups
from coatnet.training.schedule import LearningRate
from coatnet.training.sections import LossConfig, ScheduleConfig

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_softmax_loss_agrees_between_hard_and_soft_targets() -> None:
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = make_loss("softmax", 0.1)
    soft = functional.one_hot(targets, 4).float()
    torch.testing.assert_close(loss(LOGITS, targets), loss(LOGITS, soft))
    expected = functional.cross_entropy(LOGITS, targets, label_smoothing=0.1)
    torch.testing.assert_close(loss(LOGITS, targets), expected)


def test_sigmoid_loss_sums_over_classes_and_averages_over_images() -> None:
    targets = torch.randint(0, 2, (6, 4)).float()
    expected = functional.binary_cross_entropy_with_logits(LOGITS, targets, reduction="sum") / 6
    torch.testing.assert_close(make_loss("sigmoid")(LOGITS, targets), expected)
    each = make_loss("sigmoid", 1e-4, per_sample=True)(LOGITS, targets)
    torch.testing.assert_close(each.mean(), make_loss("sigmoid", 1e-4)(LOGITS, targets))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_losses_are_computed_in_fp32(name: str) -> None:
    assert make_loss(name)(LOGITS.bfloat16(), torch.zeros(6, dtype=torch.int64)).dtype == torch.float32


def test_class_weights_multiply_the_loss_of_hard_and_of_mixed_targets_alike() -> None:
    targets, weights = torch.tensor([0, 1, 2, 3, 0, 1]), [1.0, 2.0, 0.5, 4.0]
    plain = make_loss("softmax", per_sample=True)(LOGITS, targets)
    weighted = make_loss("softmax", per_sample=True, class_weights=weights)
    torch.testing.assert_close(weighted(LOGITS, targets), plain * torch.tensor(weights)[targets])
    torch.testing.assert_close(
        weighted(LOGITS, functional.one_hot(targets, 4)), plain * torch.tensor(weights)[targets]
    )


def test_an_unknown_loss_or_shape_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="name is 'hinge'; allowed: softmax, sigmoid"):
        LossConfig("hinge")
    with pytest.raises(ValueError, match="shape is 'cosin'; allowed: cosine, linear, constant"):
        ScheduleConfig("cosin")


def test_the_cosine_warms_up_peaks_and_ends_at_the_minimum() -> None:
    rate = LearningRate(peak=1.0, minimum=0.1, warmup_samples=100, total_samples=1100)
    assert [rate(0), rate(50), rate(100)] == [0.0, 0.5, 1.0]
    assert rate(350) == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2) and rate(600) == pytest.approx(0.55)
    assert rate(1100) == pytest.approx(0.1) and rate(5000) == pytest.approx(0.1)


def test_linear_and_constant_have_their_shapes() -> None:
    assert LearningRate(1.0, 0.0, 0, 100, "linear")(75) == pytest.approx(0.25)
    assert LearningRate(1.0, 0.0, 0, 100, "constant")(99) == 1.0
    assert LearningRate(1.0, 1.0, 0, 100)(99) == 1.0


def test_a_run_without_a_warm_up_begins_at_the_peak_and_one_of_warm_up_alone_ends_there() -> None:
    assert LearningRate(1.0, 0.0, 0, 100)(0) == 1.0
    assert LearningRate(1.0, 0.0, 100, 100)(100) == 1.0


def test_biases_norms_and_bias_tables_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    model.register_parameter("relative_bias", nn.Parameter(torch.zeros(2, 3, 3)))
    decaying, exempt = parameter_groups(model, 0.05)
    assert [p.ndim for p in decaying["params"]] == [4, 2] and decaying["weight_decay"] == 0.05
    assert len(exempt["params"]) == 5 and exempt["weight_decay"] == 0.0


def test_single_label_counts_are_the_same_however_the_samples_are_split() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(0, 10, (50,), generator=torch.Generator().manual_seed(2))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    whole, parts = SingleLabelMetrics(10), SingleLabelMetrics(10)
    whole.update(logits, targets, losses=losses)
    for piece in (slice(30, 50), slice(0, 30)):
        parts.update(logits[piece], targets[piece], losses=losses[piece])
    assert whole.result() == parts.result()
    assert torch.equal(whole.confusion, parts.confusion) and int(whole.confusion.sum()) == 50
    assert whole.result()["top1"] == int((logits.argmax(1) == targets).sum()) / 50
    assert whole.result()["loss"] == pytest.approx(float(losses.mean()), abs=1e-5)


def test_mean_average_precision_from_counts_is_near_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(3)
    present = torch.rand(2000, 5, generator=generator) < 0.2
    logits = torch.randn(2000, 5, generator=generator) * 2 + present * 2.0
    metrics = MultiLabelMetrics(5)
    metrics.update(logits, present.float(), losses=torch.zeros(2000))

    def exact(scores: torch.Tensor, shown: torch.Tensor) -> float:
        ranking = Ranking(scores[shown])
        ranking.add(scores.T.contiguous(), shown.T.contiguous())
        return float(ranking.average_precision())

    each = [exact(logits[:, k : k + 1], present[:, k : k + 1]) for k in range(5)]
    assert metrics.result()["map"] == pytest.approx(sum(each) / 5, abs=2e-3)
    assert metrics.result()["map_micro"] == pytest.approx(exact(logits, present), abs=2e-3)
    assert 0 < metrics.result()["precision1"] < 1


def test_logits_that_are_not_finite_count_as_wrong_and_last() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, float("inf")], [2.0, -1.0]])
    single = SingleLabelMetrics(2)
    single.update(logits, torch.tensor([0, 1, 0]), losses=torch.zeros(3))
    assert single.result()["top1"] == single.result()["top5"] == pytest.approx(1 / 3)
    multi = MultiLabelMetrics(2)
    multi.update(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), losses=torch.zeros(3))
    found = multi.result()
    assert found["precision1"] == pytest.approx(1 / 3) and 0 < found["map"] < 1


def test_three_classes_have_a_top_five_and_a_confusion_of_target_by_prediction() -> None:
    metrics = SingleLabelMetrics(3)
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 5.0, 2.0], [0.0, 5.0, 2.0]])
    metrics.update(logits, torch.tensor([0, 0, 1, 2]), losses=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert metrics.result() == {"samples": 4, "top1": 0.5, "top5": 1.0, "loss": 2.5}
    assert metrics.confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


class Called(TorchDispatchMode):
    """Notes the names of what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_are_guesses_in_the_order_of_the_classes_without_sorting_them(
    dtype: torch.dtype,
) -> None:
    """The order of 21,841 took longer than a small model."""
    metrics = SingleLabelMetrics(20)
    metrics.update(torch.zeros(20, 20), torch.arange(20), losses=torch.zeros(20))
    assert metrics.result()["top5"] == 5 / 20 and metrics.confusion[:, 0].sum() == 20
    generator = torch.Generator().manual_seed(4)
    logits = torch.randint(12, (300, 20), generator=generator).to(dtype)
    targets = torch.randint(20, (300,), generator=generator)
    best, metrics = logits.sort(dim=1, descending=True, stable=True).indices, SingleLabelMetrics(20)
    with Called() as called:
        metrics.update(logits, targets, losses=torch.zeros(300))
    hits, found = best == targets[:, None], metrics.result()
    assert found["top1"] == int(hits[:, 0].sum()) / 300 and found["top5"] == int(hits[:, :5].sum()) / 300
    assert torch.equal(metrics.confusion.sum(dim=0), best[:, 0].bincount(minlength=20))
    assert called.names and not {"sort", "topk", "argsort"}.intersection(called.names)


def test_an_evaluation_of_nothing_and_classes_without_a_positive_have_figures_and_no_nan() -> None:
    assert SingleLabelMetrics(3).result() == {"samples": 0, "top1": 0.0, "top5": 0.0, "loss": 0.0}
    metrics = MultiLabelMetrics(2)
    metrics.update(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), losses=torch.ones(1))
    assert metrics.result() == {"samples": 1, "precision1": 0.0, "map": 0.0, "map_micro": 0.0, "loss": 1.0}


def test_the_average_follows_its_formula_and_gives_the_weights_back_bit_equal() -> None:
    weights = {"w": torch.tensor([1.0, 3.0])}
    ema = Ema(0.5, weights)
    before = weights["w"].clone()
    weights["w"].add_(2.0)
    ema.update(weights, step=100)
    assert torch.equal(ema.tensors["w"], before + 1.0)
    live = weights["w"].clone()
    with ema.in_place_of(weights):
        assert torch.equal(weights["w"], ema.tensors["w"])
    assert torch.equal(weights["w"], live)


def test_a_young_average_forgets_its_start_quickly() -> None:
    ema = Ema(0.9999, {"w": torch.zeros(1)})
    for step in range(1, 21):
        ema.update({"w": torch.ones(1)}, step=step)
        if step == 1:
            assert float(ema.tensors["w"]) == pytest.approx(9 / 11)
    assert float(ema.tensors["w"]) > 0.9


def test_the_average_of_weights_in_bf16_is_kept_in_fp32() -> None:
    weights = {"w": torch.ones(1, dtype=torch.bfloat16)}
    ema = Ema(0.5, weights)
    ema.update({"w": torch.tensor([1 + 2**-7], dtype=torch.bfloat16)}, step=100)
    assert ema.tensors["w"].dtype == torch.float32 and float(ema.tensors["w"]) == 1 + 2**-8


def test_the_average_of_a_rank_that_owns_nothing_is_nothing() -> None:
    ema = Ema(0.9999, {})
    ema.update({}, step=1)
    assert ema.tensors == {}
