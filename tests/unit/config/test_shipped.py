"""Configs that came with the code mean the same from every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coatnet.config import ConfigError, load_config
from coatnet.config.shipped import find_config
from finetune.config import FinetuneConfig
from pretrain.config import PretrainConfig

RECIPE = Path("configs/pretrain/imagenet_1k_coatnet_0.yaml")


def test_a_recipe_is_found_from_another_folder_and_one_that_lies_there_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_config(PretrainConfig, RECIPE, overrides=["data.train=shards"])
    assert found.model.name == "coatnet_0"
    RECIPE.parent.mkdir(parents=True)
    RECIPE.write_text("model: {name: coatnet_1}\n")
    own = load_config(PretrainConfig, RECIPE, overrides=["data.train=shards"])
    assert own.model.name == "coatnet_1"


def test_a_config_of_ones_own_extends_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "mine" / "own.yaml"
    own.parent.mkdir()
    own.write_text(f"extends: {RECIPE}\nmodel: {{name: coatnet_2}}\n")
    given = load_config(PretrainConfig, own, overrides=["data.train=shards"])
    recipe = load_config(PretrainConfig, RECIPE, overrides=["data.train=shards"])
    assert given.model.name == "coatnet_2" and given.train == recipe.train


def test_only_configs_are_looked_for_elsewhere_and_a_misspelled_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain/imagenet_1k_coatnet_0.yaml", "configs/pretrain/imagenet_1k_coatnet_9.yaml"):
        assert find_config(Path(name)) == Path(name)
    with pytest.raises(
        ConfigError, match=r"^configs/pretrain/imagenet_1k_coatnet_9.yaml: .*did you mean configs/pretrain/"
    ):
        load_config(PretrainConfig, "configs/pretrain/imagenet_1k_coatnet_9.yaml")


@pytest.mark.parametrize("given", ["imagenet_1k_coatnet_0", "coatnet/imagenet_1k_coatnet_0.yaml"])
def test_a_recipe_given_without_its_folder_is_named_with_it(given: str) -> None:
    with pytest.raises(ConfigError, match=f"no such config file; did you mean {RECIPE}?"):
        load_config(PretrainConfig, given)


def test_a_folder_of_recipes_tells_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"configs/pretrain: is a folder; .*: imagenet_1k\.yaml, .*, jft\.yaml"
    ):
        load_config(PretrainConfig, "configs/pretrain")
    with pytest.raises(ConfigError, match=r"is a folder; give a YAML file$"):
        load_config(PretrainConfig, tmp_path)


@pytest.mark.parametrize(
    ("schema", "recipe", "words"),
    [
        (PretrainConfig, "quickstart_pretrain.yaml", []),
        (FinetuneConfig, "quickstart_finetune.yaml", ["init=a"]),
    ],
)
def test_runs_differ_by_their_mixture_and_not_by_where_the_corpora_lie(
    schema: type[Any], recipe: str, words: list[str]
) -> None:
    def digest(*data: str) -> str:
        overrides = [*words, "data.evaluate=b", *data]
        return load_config(schema, Path("configs") / recipe, overrides=overrides).run_digest()

    assert digest("data.train=a") == digest("data.train=/there/a", "data.evaluate=/there/b")
    mixture = digest("data.train=[{path: a, weight: 2}, {path: b}]")
    assert mixture == digest("data.train=[{path: /there/a, weight: 2}, {path: c}]")
    assert len({mixture, digest("data.train=a"), digest("data.train=[a, b]")}) == 3
