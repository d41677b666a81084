"""What DeepSpeed is told."""

from __future__ import annotations

import pytest

from coatnet.training.deepspeed_config import deepspeed_config
from coatnet.training.sections import ZeroConfig


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_weights_accumulate_their_gradients_in_fp32(stage: int) -> None:
    told = deepspeed_config(ZeroConfig(stage=stage), clip=1.0, precision="bf16", parameters=1000)
    assert told["bf16"]["enabled"] and told["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(("parameters", "bucket"), [(999, 1000), (10**9, 50_000)])
def test_a_bucket_is_no_larger_than_the_model(parameters: int, bucket: int) -> None:
    zero = ZeroConfig(stage=2, bucket_elements=50_000)
    told = deepspeed_config(zero, clip=1.0, precision="fp32", parameters=parameters)
    assert told["zero_optimization"]["reduce_bucket_size"] == bucket
