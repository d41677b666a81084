"""The model as accelerate trains it: one optimizer step at a time, and its state as fragments.

Knows no data source, no clock but the step's, and no file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from coatnet.checkpoint.fragments import Fragment
from coatnet.checkpoint.reader import Checkpoint
from coatnet.model.network import CoAtNet
from coatnet.model.norm import commit_statistics, defer_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.ema import Ema
from coatnet.training.losses import make_loss
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.batch import Batch
from data_pipeline.device import DeviceTransform
from finetune.config import FinetuneConfig
from finetune.parameters import frozen_modules, scaled_groups

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        loss: mean over this rank's images.
        gradient_norm: over all parameters and ranks, before clipping.
        applied: False when the gradient was not finite and nothing was changed.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    applied: bool


class Learner:
    """Forward, backward, clip, update, average.

    Attributes:
        model: the bare model; `wrapped` is what accelerate made of it.
    """

    def __init__(
        self,
        model: CoAtNet,
        config: FinetuneConfig,
        *,
        ranks: Ranks,
        num_classes: int,
        class_weights: list[float] | None,
    ) -> None:
        self.model = model.to(ranks.device)
        self._config, self._ranks, self._num_classes = config, ranks, num_classes
        self._frozen = frozen_modules(self.model, config.freeze)
        self._accelerator = Accelerator(
            cpu=ranks.device.type == "cpu",
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        optimizer = torch.optim.AdamW(
            scaled_groups(self.model, config.optimizer),
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
            eps=config.optimizer.eps,
        )
        self.wrapped, self.optimizer = self._accelerator.prepare(self.model, optimizer)
        defer_statistics(self.model)
        self._loss = make_loss(config.loss.name, config.loss.smoothing, per_sample=True)
        self._weights = None
        if class_weights is not None:
            self._weights = torch.tensor(class_weights, device=ranks.device)
        self.ema = Ema(config.ema, self._averaged()) if config.ema else None
        self.updates = 0

    def step(self, batch: Batch, *, augment: AugmentConfig, learning_rate: float) -> StepResult:
        """Take one optimizer step on this rank's share of a batch."""
        self.wrapped.train()
        for module in self._frozen:
            module.eval()  # their running statistics stay as they were learned
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        total = torch.zeros((), device=self._ranks.device)
        starts = range(0, len(batch), self._config.train.micro_batch)
        for start in starts:
            is_last = start == starts[-1]
            with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self.wrapped):
                loss = self._forward(batch, start=start, augment=augment)
                self._accelerator.backward(loss)
            total += loss.detach()
        norm = self._accelerator.clip_grad_norm_(
            self.model.parameters(), self._config.optimizer.clip or math.inf
        )
        applied = self._apply(float(norm))
        return StepResult(float(total), float(norm), learning_rate, applied)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Put the averaged weights in place inside the block; without averaging, leave all as it is."""
        if self.ema is None:
            return contextlib.nullcontext()
        return self.ema.in_place_of(self._averaged())

    def fragments(self) -> Iterator[Fragment]:
        """Yield this rank's equal part of every tensor; all ranks hold the same, so their parts fit."""
        yield from self._cut("weight", self.model.named_parameters())
        yield from self._cut("buffer", self._buffers().items())
        if self.ema is not None:
            yield from self._cut("ema", self.ema.tensors.items())
        for kind in _MOMENTS:
            yield from self._cut(kind, self._moments(kind))

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint of this run, exactly."""
        for kind, tensors in (
            ("weight", self.model.named_parameters()),
            ("buffer", self._buffers().items()),
            ("ema", self.ema.tensors.items() if self.ema is not None else ()),
        ):
            for name, tensor in tensors:
                tensor.copy_(checkpoint.tensor(kind, name).to(tensor.dtype).reshape(tensor.shape))
        self.updates = int(checkpoint.facts["updates"])
        saved = set(checkpoint.names(_MOMENTS[0]))
        for name, parameter in self.model.named_parameters():
            if name in saved:
                state: dict[str, Any] = {"step": torch.tensor(float(self.updates))}
                for kind in _MOMENTS:
                    state[kind] = checkpoint.tensor(kind, name).to(parameter.device).reshape(parameter.shape)
                self.optimizer.state[parameter] = state

    def _forward(self, batch: Batch, *, start: int, augment: AugmentConfig) -> Tensor:
        rows = slice(start, start + self._config.train.micro_batch)
        device = self._ranks.device
        images, targets = DeviceTransform(augment, training=True)(
            batch.images[rows].to(device, non_blocking=True),
            batch.labels[rows].to(device, non_blocking=True),
            batch.keys[rows],
            self._num_classes,
            self._config.train.micro_batch,
        )
        logits = self.wrapped(images, sample_keys=batch.keys[rows].to(device))
        losses = self._loss(logits, targets)
        if self._weights is not None:
            soft = targets.ndim == 2
            losses = losses * (targets.float() @ self._weights if soft else self._weights[targets])
        return losses.sum() / len(batch)

    def _apply(self, norm: float) -> bool:
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
            self.updates += 1
            # Fresh statistics forget their start quickly; a checkpoint's are worth keeping.
            young = self.updates if self._config.init is None else None
            commit_statistics(self.model, self._ranks.all_reduce_sum, step=young)
            if self.ema is not None:
                self.ema.update(self._averaged(), step=self.updates)
        else:
            defer_statistics(self.model)  # forgets the statistics of the step that is not taken
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def _averaged(self) -> dict[str, Tensor]:
        """Return what is averaged: all weights, and running statistics, which belong to them."""
        return {**dict(self.model.named_parameters()), **self._buffers()}

    def _buffers(self) -> dict[str, Tensor]:
        kept = self.model.state_dict()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in kept}

    def _moments(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if parameter in self.optimizer.state:
                yield name, self.optimizer.state[parameter][kind]

    def _cut(self, kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Fragment]:
        for name, tensor in tensors:
            flat = tensor.detach().reshape(-1)
            first = len(flat) * self._ranks.rank // self._ranks.world_size
            end = len(flat) * (self._ranks.rank + 1) // self._ranks.world_size
            if end > first:
                yield Fragment(kind, name, tuple(tensor.shape), first, flat[first:end])
