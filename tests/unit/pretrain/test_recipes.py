"""Every recipe in configs/pretrain loads, and says what Table 10 of the paper says."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from coatnet.config import load_config
from pretrain.config import PretrainConfig

FOLDER = Path(__file__).parents[3] / "configs/pretrain"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
TABLE_10 = {
    # stochastic depth, RandAugment n and m, mixup, loss, smoothing, epochs, rate, decay, shape, warm-up
    "imagenet_1k_coatnet_0": (0.2, 2, 15, 0.8, "softmax", 0.1, 300, 1e-3, 0.05, "cosine", "10000 steps"),
    "imagenet_1k_coatnet_1": (0.3, 2, 15, 0.8, "softmax", 0.1, 300, 1e-3, 0.05, "cosine", "10000 steps"),
    "imagenet_1k_coatnet_2": (0.5, 2, 15, 0.8, "softmax", 0.1, 300, 1e-3, 0.05, "cosine", "10000 steps"),
    "imagenet_1k_coatnet_3": (0.7, 2, 15, 0.8, "softmax", 0.1, 300, 1e-3, 0.05, "cosine", "10000 steps"),
    "imagenet_21k_coatnet_2": (0.3, 0, 0, 0, "sigmoid", 1e-4, 90, 1e-3, 0.01, "linear", "5 epochs"),
    "imagenet_21k_coatnet_3": (0.5, 0, 0, 0, "sigmoid", 1e-4, 90, 1e-3, 0.01, "linear", "5 epochs"),
    "imagenet_21k_coatnet_4": (0.7, 0, 0, 0, "sigmoid", 1e-4, 90, 1e-3, 0.01, "linear", "5 epochs"),
    "jft_coatnet_3": (0.0, 2, 5, 0, "sigmoid", 1e-4, 14, 1e-3, 0.01, "linear", "20000 steps"),
    "jft_coatnet_4": (0.1, 2, 5, 0, "sigmoid", 1e-4, 14, 5e-4, 0.01, "linear", "20000 steps"),
    "jft_coatnet_5": (0.0, 2, 5, 0, "sigmoid", 1e-4, 14, 5e-4, 0.01, "linear", "20000 steps"),
}


@functools.cache
def load(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, FOLDER / name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_names_its_command(name: str) -> None:
    assert load(name)
    assert "coatnet pretrain configs/pretrain/" in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", TABLE_10)
def test_a_recipe_is_the_one_of_table_10(name: str) -> None:
    config = load(f"{name}.yaml")
    augment, optimizer, schedule = config.augment, config.optimizer, config.schedule
    found = (
        config.model.stochastic_depth,
        augment.randaugment_n,
        augment.randaugment_m,
        augment.mixup,
        config.loss.name,
        config.loss.smoothing,
        int(config.train.duration.split()[0]),
        optimizer.learning_rate,
        optimizer.weight_decay,
        schedule.shape,
        schedule.warmup,
    )
    assert found == TABLE_10[name]
    assert (optimizer.clip, schedule.minimum, config.train.global_batch) == (1.0, 1e-5, 4096)
    assert name.endswith(config.model.name.removesuffix("_dconv"))


def test_the_recipes_of_6_and_7_say_that_nobody_has_published_them() -> None:
    for size in (6, 7):
        assert "AN UNPUBLISHED RECIPE" in (FOLDER / f"unpublished_coatnet_{size}.yaml").read_text()
