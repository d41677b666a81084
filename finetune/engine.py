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
from coatnet.model.norm import commit_statistics, defer_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.optimizer import ClippedAdamW, make_optimizer
from coatnet.training.sharded_state import ShardedState
from finetune.config import FinetuneConfig
from finetune.start import frozen_modules

LossOf = Callable[[nn.Module], Tensor]


class Engine:
    """Forward, backward, clip, update, average.

    Attributes:
        model: the bare model.
        state: weights, moments, statistics and average, as checkpoints hold them.
        applied_steps: optimizer steps that changed the weights.
    """

    def __init__(self, model: CoAtNet, config: FinetuneConfig, *, ranks: Ranks) -> None:
        self.model, self.applied_steps = model.to(ranks.device), 0
        self._config, self._ranks = config, ranks
        self._frozen = frozen_modules(self.model, config.freeze)
        wanted, stage = config.optimizer, config.zero
        self._adamw = make_optimizer(
            self.model, wanted, stage=stage, precision="fp32", layer_decay=wanted.layer_decay
        )
        on_cpu = ranks.device_type == "cpu"
        handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
        if on_cpu and config.zero:  # accelerate refuses `cpu` beside DeepSpeed, and knows no backend without
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
        self._accelerator = Accelerator(
            cpu=on_cpu and not config.zero,
            deepspeed_plugin=_Plugin(config) if config.zero else None,
            kwargs_handlers=handlers,
        )
        self._wrapped, self._optimizer = self._accelerator.prepare(self.model, self._adamw)
        defer_statistics(self.model)
        plain = SimpleNamespace(module=self.model, optimizer=self._adamw)
        holder, average = (self._wrapped if config.zero else plain), config.ema or None
        self.state = ShardedState(holder, stage=config.zero, ranks=ranks, ema_decay=average)

    def step(self, losses: Sequence[LossOf], *, learning_rate: float) -> tuple[Tensor, float, bool]:
        """Take one optimizer step over micro-batches, each given as the function from model to loss.

        Returns:
            This rank's summed loss, the gradient's norm over all ranks before clipping, and whether the step
            was applied: a gradient that is not finite changes nothing.
        """
        self._wrapped.train()
        for module in self._frozen:
            module.eval()  # their running statistics stay as they were learned
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        in_bf16 = self._config.precision == "bf16"
        total = torch.zeros((), device=self._ranks.device)
        for loss_of in losses:
            is_last = loss_of is losses[-1]
            self._accelerator.gradient_state._set_sync_gradients(is_last)
            with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._wrapped):
                with torch.autocast(self._ranks.device_type, torch.bfloat16, enabled=in_bf16):
                    loss = loss_of(self._wrapped)
                self._accelerator.backward(loss)
            total += loss.detach()
        norm = self._update()
        applied = math.isfinite(norm)
        if applied:
            self.applied_steps += 1
            # Fresh statistics forget their start quickly; a checkpoint's are worth keeping.
            young = self.applied_steps if self._config.init is None else None
            commit_statistics(self.model, self._ranks.all_reduce_sum, step=young)
            self.state.update_ema(step=self.applied_steps)
        else:
            defer_statistics(self.model)  # forgets the statistics of the step that is not taken
        return total, norm, applied

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

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(
            hf_ds_config={
                "train_micro_batch_size_per_gpu": 1,  # micro-batches are cut and counted by us
                "gradient_accumulation_steps": 1,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "gradient_clipping": config.optimizer.clip,
                "zero_optimization": {"stage": config.zero},
            }
        )

    def set_deepspeed_weakref(self) -> None:
        """Do nothing."""
