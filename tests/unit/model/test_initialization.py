"""How kernels begin."""

import pytest
import torch
from torch import nn

from coatnet.model.attention import RelativeBias
from coatnet.model.blocks import Conv
from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model

TINY = {"depths": [1, 1, 1, 1, 1], "widths": [32, 32, 64, 64, 128], "image_size": 64, "num_classes": 64}


@pytest.mark.parametrize("initialization", ["paper", "fan_in"])
def test_kernels_have_the_promised_deviation_and_biases_are_zero(initialization: str) -> None:
    model = build_model(ModelConfig(**TINY, initialization=initialization), seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv) and module.weight.numel() > 2000:
            expected = 0.02 if initialization == "paper" else module.weight[0].numel() ** -0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            assert not bias.any(), name


def test_bias_tables_do_not_depend_on_the_kernels_initialization() -> None:
    for initialization in ("paper", "fan_in"):
        model = build_model(ModelConfig(**TINY, initialization=initialization), seed=0)
        tables = [module.table.flatten() for module in model.modules() if isinstance(module, RelativeBias)]
        assert torch.cat(tables).std().item() == pytest.approx(0.02, rel=0.1)


def test_an_unknown_initialization_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="paper, fan_in"):
        ModelConfig(initialization="xavier")
