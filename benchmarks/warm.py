"""Load whatever a run loads, in a process that forks ranks: each of them would load it again."""

from __future__ import annotations

import importlib

import torch

from pretrain.engine.start import load_deepspeed

_LOADED = (
    "torch._dynamo",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks",
    "torch.utils.tensorboard",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.stage3",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "cluster.planning.request",
    "coatnet.training.loop",
    "data_pipeline.cli",
    "finetune.cli",
    "finetune.run",
    "finetune.worker",
    "pretrain.cli",
    "pretrain.launch",
    "pretrain.run",
    "pretrain.worker",
    "psutil",
    "rich.live",
)


def warm_up() -> None:
    """Load it; a fork computes on one thread."""
    load_deepspeed()
    for name in _LOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
