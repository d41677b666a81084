"""What DeepSpeed is told, and what is refused because it would do something else than asked."""

from __future__ import annotations

import pytest

from coatnet.config import UserError
from coatnet.training.sections import ZeroConfig
from pretrain.engine.deepspeed_config import deepspeed_config


def test_bf16_weights_at_stage_one_are_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"set zero\.stage=2, or precision=autocast"):
        deepspeed_config(ZeroConfig(stage=1), clip=1.0, precision="bf16")


@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_weights_accumulate_their_gradients_in_fp32(stage: int) -> None:
    told = deepspeed_config(ZeroConfig(stage=stage), clip=1.0, precision="bf16")
    assert told["bf16"] == {"enabled": True} and told["data_types"] == {"grad_accum_dtype": "fp32"}
