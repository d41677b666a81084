"""Stage 3 from the first weight on: a module's parameters are sharded before the next module's are made.

No rank ever holds more than its shards and one whole module.
"""

from __future__ import annotations

import torch
from torch import nn

from coatnet.model.initial import Placed
from coatnet.runtime.ranks import Ranks
from coatnet.training.deepspeed_config import deepspeed_config
from coatnet.training.sections import ZeroConfig
from pretrain.engine.start import load_deepspeed


def sharder(zero: ZeroConfig, *, ranks: Ranks, precision: str) -> Placed | None:
    """Return what `build_model` is to call with each module; None at stages that shard no weights."""
    if zero.stage < 3:
        return None
    told = deepspeed_config(zero, clip=0.0, precision=precision, parameters=zero.bucket_elements)
    known: list[nn.Parameter] = []

    def shard(module: nn.Module) -> None:
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(ranks.device))
        own = list(module.parameters(recurse=False))
        if not own:
            return
        if precision == "bf16":
            for parameter in own:
                parameter.data = parameter.data.to(torch.bfloat16)
        if known:
            known[0].convert_to_zero_parameters(param_list=own)  # type: ignore[attr-defined]
        else:
            load_deepspeed().zero.Init(module=module, config_dict_or_path=told)
        known.extend(own)

    return shard
