"""One optimizer step over any number of micro-batches, at any ZeRO stage. Knows no data, file or schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.model.sync import silent_sums
from coatnet.runtime.ranks import Ranks
from coatnet.training.deepspeed_config import deepspeed_config
from coatnet.training.optimizer import MasterAdamW, make_optimizer
from coatnet.training.precision import compute_in_bf16
from coatnet.training.sections import OptimizerConfig, ZeroConfig
from coatnet.training.sharded_state import ShardedState
from pretrain.engine.alone import stand_in, windows
from pretrain.engine.flattening import moving_weights, stay
from pretrain.engine.lifetimes import keep_until_reduced
from pretrain.engine.norms import refuse_what_overflows
from pretrain.engine.own_time import OwnTime
from pretrain.engine.start import load_deepspeed

# A micro-batch is turned into its loss by the caller's function, which runs the forward pass.
LossOf = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Update:
    """What one optimizer step did.

    Attributes:
        loss: this rank's mean over its samples, detached.
        gradient_norm: global, before clipping; infinite when the gradient was not finite.
        applied: False when the step was refused because of a non-finite gradient.
    """

    loss: Tensor
    gradient_norm: float
    applied: bool


class Engine:
    """A model, its optimizer and its EMA, sharded by DeepSpeed.

    Attributes:
        state: weights, moments, statistics and average, as checkpoints hold them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ranks: Ranks,
        zero: ZeroConfig,
        optimizer: OptimizerConfig,
        precision: str = "fp32",
        ema_decay: float | None = None,
        skeleton: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Shard a model.

        Args:
            model: at stage 3 sharded already, by `sharder`.
            ranks, zero, optimizer, precision, ema_decay: how.
            skeleton: makes the model again on the meta device, for `rehearse_alone`.
        """
        self.ranks, self.stage, self.precision = ranks, zero.stage, precision
        self._zero, self._skeleton = zero, skeleton
        self._optimizer = optimizer
        self._own_time = OwnTime(device_type=ranks.device_type)
        self._choose_precision(model)
        told = deepspeed_config(zero, clip=optimizer.clip, precision=precision, parameters=_elements(model))
        deepspeed = load_deepspeed()
        with moving_weights():
            self._deepspeed, *_ = deepspeed.initialize(
                model=model,
                optimizer=make_optimizer(model, optimizer, stage=zero.stage, precision=precision),
                config=told,
                dist_init_required=False,
            )
        stay(self._deepspeed.optimizer)
        keep_until_reduced(self._deepspeed.optimizer)
        if self.stage == 3:
            refuse_what_overflows(self._deepspeed.optimizer)
        if isinstance(self._deepspeed.optimizer, MasterAdamW):
            self._deepspeed.optimizer.halve()
        self.state = ShardedState(self._deepspeed, stage=self.stage, ranks=ranks, ema_decay=ema_decay)

    @property
    def module(self) -> nn.Module:
        """The model as the forward pass sees it."""
        return self._deepspeed.module

    @property
    def own_seconds(self) -> float:
        """The time of the last step until this rank began to wait for the others."""
        return self._own_time.seconds()

    def step(
        self,
        micro_batches: Sequence[Any],
        *,
        loss_of: LossOf,
        lr: float,
        veto: Callable[[Tensor], bool] | None = None,
    ) -> Update:
        """Accumulate over the micro-batches (of equal size) and update the weights.

        Args:
            veto: asked with this rank's loss before the last backward pass; True on all ranks refuses the
                step by the same road that non-finite gradients take.
        """
        count = len(micro_batches)
        self._own_time.begin()
        total = torch.zeros((), device=self.ranks.device)
        for number, micro_batch in enumerate(micro_batches):
            last = number == count - 1
            self._deepspeed.set_gradient_accumulation_boundary(last)
            loss = loss_of(self._deepspeed, micro_batch) / count
            total += loss.detach()
            if last:
                self._own_time.end()
            if last and veto is not None and veto(total):
                loss = loss * float("nan")
            self._deepspeed.backward(loss)
            if not last:
                self._deepspeed.step()
        return self._update(total, lr=lr)

    def rehearse_alone(self, micro_batch: Any, *, loss_of: LossOf) -> None:
        """Take a micro-batch forward and backward without a word to the other ranks, and keep nothing of it.

        At stage 3 a stand-in takes it, beside memory for what a common step would gather and reduce.
        """
        if self.stage == 3:
            assert self._skeleton is not None
            device, dtype = self.ranks.device, next(self.module.parameters()).dtype
            model = stand_in(self._skeleton(), device=device, dtype=dtype)
            taken = windows(model, self._zero, device=device, dtype=dtype)
            self._choose_precision(model)
        else:
            model, taken = self.module, []
        with silent_sums():
            loss = loss_of(model, micro_batch)
            if taken:
                loss.backward()
            else:  # not `backward`, whose hooks would begin to reduce gradients
                torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    def _update(self, loss: Tensor, *, lr: float) -> Update:
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr
        self._deepspeed.step()
        norm = float(self._deepspeed.get_global_grad_norm())
        applied = bool(self._deepspeed.was_step_applied())
        self.state.applied_steps += applied
        return Update(loss, norm if applied else float("inf"), applied)

    @torch.no_grad()
    def update_norm(self, *, lr: float) -> float:
        """Return the norm of the last step's change of the weights, without its weight decay."""
        first, second = self._optimizer.betas
        corrections = [1 - beta ** max(1, self.state.applied_steps) for beta in (first, second)]
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for piece in self.state.pieces:
            direction = piece.values["exp_avg"] / corrections[0]
            scale = (piece.values["exp_avg_sq"] / corrections[1]).sqrt_().add_(self._optimizer.eps)
            total += (direction / scale).square_().sum(dtype=torch.float64)
        self.ranks.all_reduce_sum(total)
        return lr * float(total.sqrt())

    @contextmanager
    def evaluating(self, *, ema: bool = False) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield a forward function in evaluation mode, of the weights or of their moving average."""
        self._deepspeed.eval()
        try:
            with torch.no_grad(), self.state.averaged_weights() if ema else nullcontext():
                yield self._evaluate
        finally:
            self._deepspeed.train()

    def _evaluate(self, images: Tensor) -> Tensor:
        return self._deepspeed(images).float()

    def _choose_precision(self, model: nn.Module) -> None:
        if self.precision != "fp32":
            # At stage 3 a gathered weight is gone after its layer; its cached copy would stay.
            compute_in_bf16(model, device_type=self.ranks.device_type, cache=self.stage < 3)


def _elements(model: nn.Module) -> int:
    """Count a model's parameters; one that is sharded already is empty and says its size itself."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
