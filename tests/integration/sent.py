"""What DeepSpeed sends in a step, counted where it calls the collectives. Runs on forked ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from pretrain.engine.engine import Engine


def sent_bytes(engine: Engine, step: Callable[[int], Any]) -> dict[str, Any]:
    """Take two steps and count the bytes of weights and gradients that the second sends, by collective.

    Returns:
        sent: by collective; early: what of that was reduced when the gradient of the stem's weight came, the
            last of a backward pass; parameters: of the model.
    """
    from deepspeed.comm import comm

    sizes: Counter[str] = Counter()
    early: list[int] = []
    for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor"):
        setattr(comm.cdb, name, _counted(getattr(comm.cdb, name), name, sizes))
    step(0)  # DeepSpeed looks some of them up once
    sizes.clear()
    parameters = dict(engine.module.named_parameters())
    parameters["stem.conv1.weight"].register_hook(lambda _: early.append(sizes["all_reduce"]))
    step(1)
    count = sum(getattr(one, "ds_numel", one.numel()) for one in parameters.values())
    return {"sent": dict(sizes), "early": early, "parameters": count}


def _counted(collective: Callable[..., Any], name: str, sizes: Counter[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        given = [one for one in (*arguments, *options.values()) if isinstance(one, torch.Tensor)]
        sizes[name] += max(one.nbytes for one in given)  # of the whole and a shard of it the whole
        return collective(*arguments, **options)

    return call
