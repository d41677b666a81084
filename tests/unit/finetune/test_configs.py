"""Every recipe is a valid config whose values are those of the paper's table."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from coatnet.config import ConfigError, load_config
from coatnet.training.calendar import Calendar
from finetune.config import FinetuneConfig

FOLDER = Path(__file__).parents[3] / "configs" / "finetune"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
IMAGENET_IMAGES = 1_281_167


@functools.cache
def load(name: str, *overrides: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, FOLDER / name, overrides=["init=runs/pretrained", *overrides])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_has_a_calendar(name: str) -> None:
    plan = Calendar.make(load(name), epoch_samples=IMAGENET_IMAGES)
    assert plan.total == pytest.approx(30 * IMAGENET_IMAGES, rel=0.001)
    assert plan.phases[-1].end == plan.total


@pytest.mark.parametrize("name", [name for name in RECIPES if "coatnet" in name])
def test_a_recipe_of_the_paper_has_the_values_that_all_of_them_share(name: str) -> None:
    config = load(name)
    plan = Calendar.make(config, epoch_samples=IMAGENET_IMAGES)
    assert {plan.learning_rate(seen) for seen in (1024, plan.total // 2, plan.total)} == {5e-5}
    assert (config.optimizer.weight_decay, config.optimizer.clip, config.ema) == (1e-8, 1.0, 0.9999)
    assert (config.loss.name, config.loss.smoothing) == ("softmax", 0.1)
    assert config.train.global_batch == (1024 if "21k" in name else 512)
    assert config.augment.evaluate_resize == "whole"
    assert config.augment.mixup == (0.8 if name.startswith("imagenet_1k") else 0.0)


@pytest.mark.parametrize(
    ("name", "depth", "magnitude"),
    [
        ("imagenet_1k_coatnet_0_384.yaml", 0.2, 15),
        ("imagenet_1k_coatnet_3_512.yaml", 0.7, 20),
        ("imagenet_21k_to_1k_coatnet_3_384.yaml", 0.5, 0),
        ("imagenet_21k_to_1k_coatnet_4_512.yaml", 0.7, 5),
        ("jft_to_1k_coatnet_5_512.yaml", 0.2, 5),
    ],
)
def test_stochastic_depth_and_randaugment_are_the_columns_of_table_10(
    name: str, depth: float, magnitude: float
) -> None:
    config = load(name)
    assert (config.stochastic_depth, config.augment.randaugment_m) == (depth, magnitude)


def test_phases_share_the_duration_and_end_on_whole_steps() -> None:
    plan = Calendar.make(load("progressive.yaml"), epoch_samples=1000)
    assert [phase.image_size for phase in plan.phases] == [224, 384, 512]
    assert plan.phases[0].end == pytest.approx(0.6 * plan.total, abs=64)
    assert all(phase.end % 64 == 0 for phase in plan.phases)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.durration=3 epochs", "did you mean train.duration"),
        ("train.duration=3 minutes", "allowed: epochs, steps or images"),
        ("freeze=[S9]", "allowed: S0, S1"),
        ("ema=1.0", "to below 1"),
        ("head.init=ones", "allowed: zero, normal"),
        ("augment.image_size=100", "multiples of 32"),
        ("init=null", "a checkpoint, or a model"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("small.yaml", override)


def test_from_scratch_there_are_no_rows_to_keep() -> None:
    scratch = ("init=null", "model={name: coatnet_0}")
    assert load("small.yaml", *scratch).init is None
    with pytest.raises(ConfigError, match=r"a model and head\.keep_rows none"):
        load("small.yaml", *scratch, "head.keep_rows=matching")
