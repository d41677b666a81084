"""Parameters and FLOPs of the family, against the paper's tables. The list below is the specification."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coatnet.model.config import ModelConfig
from coatnet.model.cost import model_cost
from coatnet.model.network import build_model

PARAMETERS = {
    "coatnet_0": 25_036_948,
    "coatnet_1": 42_225_904,
    "coatnet_2": 74_685_000,
    "coatnet_3": 166_966_648,
    "coatnet_4": 275_425_672,
    "coatnet_5": 687_053_336,
    "coatnet_6": 1_471_125_616,
    "coatnet_6_table12": 1_348_435_424,
    "coatnet_7": 2_441_973_112,
}
# name, px, pure MACs, under the paper's convention, as printed; all in G
FLOPS = [
    ("coatnet_0", 224, 4.14, 4.22, 4.2),
    ("coatnet_1", 224, 8.24, 8.39, 8.4),
    ("coatnet_2", 224, 15.50, 15.70, 15.7),
    ("coatnet_3", 224, 34.37, 34.67, 34.7),
    ("coatnet_0", 384, 13.05, 13.43, 13.4),
    ("coatnet_1", 384, 26.60, 27.43, 27.4),
    ("coatnet_2", 384, 48.75, 49.86, 49.8),
    ("coatnet_3", 384, 105.79, 107.46, 107.4),
    ("coatnet_4", 384, 186.50, 189.61, 189.5),
    ("coatnet_2", 512, 93.35, 96.78, 96.7),
    ("coatnet_3", 512, 198.11, 203.25, 203.1),
    ("coatnet_4", 512, 351.46, 361.30, 360.9),
    ("coatnet_5", 512, 803.98, 813.25, 812),
    ("coatnet_6", 512, 1495.49, 1517.6, 1521),
    ("coatnet_7", 512, 2538.53, 2567.9, 2586),
    ("coatnet_0_dconv", 224, 4.55, 4.65, 4.6),
    ("coatnet_1_dconv", 224, 8.64, 8.81, 8.8),
    ("coatnet_2_dconv", 224, 16.43, 16.66, 16.6),
    ("coatnet_3_dconv", 384, 111.91, 113.72, 114),
    ("coatnet_3_dconv", 512, 208.98, 214.37, 214),
]
PRINTED_TOLERANCE = {"coatnet_6": 0.008, "coatnet_7": 0.008, "coatnet_0_dconv": 0.05 / 4.6}  # rounding of 4.6


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_a_network_has_the_papers_parameters_to_the_last_one(name: str, count: int) -> None:
    model = build_model(ModelConfig(name=name), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model_cost(ModelConfig(name=name), 224).parameters == count


@pytest.mark.parametrize(("name", "px", "macs", "convention", "printed"), FLOPS)
def test_flops_are_the_papers(name: str, px: int, macs: float, convention: float, printed: float) -> None:
    cost = model_cost(ModelConfig(name=name), px)
    assert cost.macs / 1e9 == pytest.approx(macs, abs=0.006)
    assert cost.paper_flops / 1e9 == pytest.approx(convention, rel=0.001)
    assert cost.paper_flops / 1e9 == pytest.approx(printed, rel=PRINTED_TOLERANCE.get(name, 0.006))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(name="coatnet_1_dconv"),
        ModelConfig(name="coatnet_7"),
        ModelConfig(name="vit_rel"),
        ModelConfig(name="coatnet_2", layout="C-T-T-T", depths=[2, 2, 2, 15, 2]),
    ],
    ids=lambda config: config.name,
)
def test_macs_are_what_torch_counts(config: ModelConfig) -> None:
    model = build_model(config, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * model_cost(config, 224).macs


def test_the_parts_add_up_to_the_whole() -> None:
    cost = model_cost(ModelConfig(name="coatnet_7"), 384)
    for parts in (cost.stages, cost.kinds, [block for stage in cost.stages for block in stage.blocks]):
        assert sum(part.parameters for part in parts) == cost.parameters
        assert sum(part.macs for part in parts) == cost.macs
        assert sum(part.activation_bytes for part in parts) == cost.activation_bytes


def test_parameters_do_not_depend_on_the_resolution_that_is_fed() -> None:
    assert model_cost(ModelConfig(), 512).parameters == PARAMETERS["coatnet_0"]
