"""Which blocks `train.fused_mbconv` takes, and that a CPU computes the same bits."""

from __future__ import annotations

import pytest
import torch

from coatnet.model.config import ModelConfig
from coatnet.model.network import build_model

SMALL = {"depths": [1, 2, 2, 1, 1], "widths": [8, 8, 16, 32, 32], "image_size": 32, "num_classes": 5}


@pytest.mark.parametrize(
    ("changes", "fused"),
    [
        ({}, [True, True, True, True]),
        ({"stride_place": "depthwise"}, [False, True, False, True]),
        ({"mbconv_norm": "layer"}, [False] * 4),
        ({"gelu": "exact"}, [False] * 4),
    ],
)
def test_only_blocks_of_the_form_that_the_kernels_know_are_fused(
    changes: dict[str, str], fused: list[bool]
) -> None:
    model = build_model(ModelConfig(**SMALL, **changes), device="meta")
    model.fuse_mbconv()
    found = [block.fused for stage, block in model.blocks() if stage in ("S1", "S2")]
    assert found == fused


def test_without_a_gpu_a_fused_model_computes_the_same_bits() -> None:
    models = [build_model(ModelConfig(**SMALL), seed=0).train() for _ in range(2)]
    models[1].fuse_mbconv()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(*(model(images) for model in models))
