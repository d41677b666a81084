"""configs/ablations: each loads, changes what its name says and has the paper's size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from coatnet.config import load_config
from coatnet.model.cost import model_cost
from coatnet.model.layouts import LAYOUTS, layout_config
from pretrain.config import PretrainConfig

FOLDER = Path(__file__).parents[3] / "configs" / "ablations"
OVERRIDES = ["data.train=[{path: shards}]"]
# Parameters and MACs at 224 px, in M and G, of the layouts matched to CoAtNet-2.
SIZES = {
    "ViT-REL": (75.62, 15.28),
    "C-C-C-C": (74.73, 15.42),
    "C-C-C-T": (74.73, 15.45),
    "C-C-T-T": (74.69, 15.50),
    "C-T-T-T": (75.49, 15.54),
}
SWITCHES = {
    "without_relative_attention": {"relative_attention": False},
    "split_v0": {"depths": [2, 2, 6, 14, 2]},
    "split_v1": {"depths": [2, 2, 2, 18, 2]},
    "split_v2": {"depths": [2, 2, 8, 12, 2]},
    "head_size_32": {"head_size": 32},
    "head_size_64": {"head_size": 64},
    "layer_norm": {"mbconv_norm": "layer"},
    "depthwise_stride_coatnet_0": {"name": "coatnet_0", "stride_place": "depthwise", "stochastic_depth": 0.2},
    "depthwise_stride_coatnet_1": {"name": "coatnet_1", "stride_place": "depthwise", "stochastic_depth": 0.3},
    "depthwise_stride_coatnet_2": {"stride_place": "depthwise"},
}


def load(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, FOLDER / f"{name}.yaml", overrides=OVERRIDES)


def layout_file(layout: str) -> str:
    return f"layout_{layout.lower().replace('-', '_')}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layouts_config_is_the_network_of_its_name_at_the_matched_size(layout: str) -> None:
    config = load(layout_file(layout)).model
    assert dataclasses.replace(config, stochastic_depth=0.0) == layout_config(layout)
    cost = model_cost(config, 224)
    assert (cost.parameters / 1e6, cost.macs / 1e9) == pytest.approx(SIZES[layout], abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_an_ablation_changes_its_switch_and_nothing_else(name: str) -> None:
    base = load(layout_file("C-C-T-T")).model
    config = load(name).model
    expected = dataclasses.replace(base, **{"depths": None, "layout": None, **SWITCHES[name]})
    assert config == expected


def test_every_file_in_the_folder_is_tested() -> None:
    tested = {layout_file(layout) for layout in LAYOUTS} | SWITCHES.keys()
    assert {path.stem for path in FOLDER.glob("*.yaml")} == tested
