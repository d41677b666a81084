"""The model as accelerate trains it, plain or by its DeepSpeed plug-in. Knows no data, clock or file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from coatnet.model.network import CoAtNet
from coatnet.model.norm import defer_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.deepspeed_config import deepspeed_config
from coatnet.training.optimizer import ClippedAdamW, make_optimizer
from coatnet.training.precision import compute_in_bf16
from coatnet.training.sections import ZeroConfig
from coatnet.training.sharded_state import ShardedState
from finetune.config import FinetuneConfig

LossOf = Callable[[nn.Module], Tensor]


class Engine:
    """Forward, backward, clip, update, average.

    Attributes:
        model: the bare model.
        state: weights, moments, statistics and average, as checkpoints hold them.
    """

    def __init__(self, model: CoAtNet, config: FinetuneConfig, *, ranks: Ranks) -> None:
        self.model, self._config, self._ranks = model.to(ranks.device), config, ranks
        self.model.freeze(config.freeze)
        wanted, stage = config.optimizer, config.zero
        self._adamw = make_optimizer(
            self.model, wanted, stage=stage, precision="fp32", layer_decay=wanted.layer_decay
        )
        parameters, on_cpu = sum(one.numel() for one in self.model.parameters()), ranks.device_type == "cpu"
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        handlers: list[Any] = [ddp]
        if on_cpu and config.zero:  # accelerate refuses `cpu` beside DeepSpeed, and knows no backend without
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
        self._accelerator = Accelerator(
            cpu=on_cpu and not config.zero,
            deepspeed_plugin=_Plugin(config, parameters=parameters) if config.zero else None,
            kwargs_handlers=handlers,
        )
        if config.precision == "bf16":
            compute_in_bf16(self.model, device_type=ranks.device_type)
        self._wrapped, self._optimizer = self._accelerator.prepare(self.model, self._adamw)
        defer_statistics(self.model)
        holder = self._wrapped if config.zero else SimpleNamespace(module=self.model, optimizer=self._adamw)
        self.state = ShardedState(holder, stage=config.zero, ranks=ranks, ema_decay=config.ema or None)

    def step(self, losses: Sequence[LossOf], *, learning_rate: float) -> tuple[Tensor, float]:
        """Take one optimizer step over micro-batches, each given as the function from model to loss.

        Returns:
            This rank's summed loss, and the gradient's norm over all ranks before clipping: one that is not
            finite changes nothing.
        """
        self._wrapped.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        total = torch.zeros((), device=self._ranks.device)
        for loss_of in losses:
            is_last = loss_of is losses[-1]
            self._accelerator.gradient_state._set_sync_gradients(is_last)
            with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._wrapped):
                loss = loss_of(self._wrapped)
                self._accelerator.backward(loss)
            total += loss.detach()
        norm = self._update()
        self.state.applied_steps += math.isfinite(norm)
        return total, norm

    def _update(self) -> float:
        """Clip and update, which DeepSpeed has done by now, and return the gradient's norm."""
        if self._config.zero:
            norm = float(self._wrapped.get_global_grad_norm())
            return norm if self._wrapped.was_step_applied() else math.inf
        assert isinstance(self._adamw, ClippedAdamW)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return self._adamw._global_grad_norm


class _Plugin(DeepSpeedPlugin):
    """accelerate's plug-in without its hook into transformers, which would have to be installed."""

    def __init__(self, config: FinetuneConfig, *, parameters: int) -> None:
        zero, clip = ZeroConfig(stage=config.zero), config.optimizer.clip
        told = deepspeed_config(zero, clip=clip, precision="fp32", parameters=parameters)
        super().__init__(hf_ds_config=told)

    def set_deepspeed_weakref(self) -> None:
        """Do nothing."""
