"""Stochastic depth: rates, scales, and draws that are a function of sample and branch alone."""

from __future__ import annotations

import pytest
import torch

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model
from coatnet.model.stochastic_depth import keep_scales, uniform

SMALL = {"depths": [1, 1, 1, 2, 1], "widths": [8, 8, 16, 32, 32], "num_classes": 5, "image_size": 64}


def test_draws_are_uniform_and_independent_of_their_neighbours() -> None:
    keys = torch.arange(20_000)
    draws = uniform(keys, 4)
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) < 1.0
    assert torch.allclose(draws.mean(0), torch.tensor(0.5), atol=0.01)
    correlation = torch.corrcoef(draws.t()) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.03
    assert torch.equal(uniform(keys[137:139], 4), draws[137:139])


def test_scales_keep_the_expectation() -> None:
    scales = keep_scales(uniform(torch.arange(50_000), 3), (0.0, 0.3, 0.7))
    assert torch.allclose(scales.mean(0), torch.tensor(1.0), atol=0.02)
    assert bool((scales[:, 0] == 1).all())
    assert scales[:, 1].unique().numel() == 2


def test_rates_rise_linearly_with_the_block_and_transformers_have_two_branches() -> None:
    model = build_model(ModelConfig(stochastic_depth=0.5, **SMALL), device="meta")
    assert model._drop_rates == pytest.approx([0.0, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])


def test_a_samples_result_depends_on_its_key_and_not_on_the_batch_around_it() -> None:
    model = build_model(ModelConfig(stochastic_depth=0.6, mbconv_norm="layer", **SMALL), seed=0)
    model.train().stem.eval()  # batch norm would mix the images
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(100, 106)
    with torch.no_grad():
        together = model(images, sample_keys=keys)
        halves = torch.cat([model(images[:3], sample_keys=keys[:3]), model(images[3:], sample_keys=keys[3:])])
        other = model(images, sample_keys=keys + 1)
    assert torch.allclose(together, halves, atol=1e-5)
    assert not torch.allclose(together, other, atol=1e-5)
