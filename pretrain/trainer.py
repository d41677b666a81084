"""One training step of all ranks: transform, accumulate, update, agree. Knows no file and no calendar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coatnet.model.norm import defer_statistics
from coatnet.runtime.account import TimeAccount
from coatnet.training.distrust import require_one_verdict
from coatnet.training.losses import make_loss
from coatnet.training.recorder import StepResult
from data_pipeline.batch import Batch
from data_pipeline.device import TrainTransform
from data_pipeline.permutation import derive_key
from pretrain.config import PretrainConfig
from pretrain.engine.engine import Engine
from pretrain.state import digest_of_positions

_STEP_KEY = 17  # purpose of the key that seeds torch for a step
Veto = Callable[[float], bool]


@dataclass(frozen=True, kw_only=True)
class PretrainResult(StepResult):
    """What a step did, equal on all ranks.

    Attributes:
        seconds: the ranks' own times, until they began to wait for each other in the last backward pass.
        digest: of the positions of the step's samples, `state.digest_of_positions`.
    """

    seconds: list[float]
    digest: int

    def counts(self) -> dict[str, Any]:
        """Return what moves the run's state on."""
        return {**super().counts(), "digest": self.digest}


class Trainer:
    """Takes steps; the same samples give the same result at any world size and accumulation."""

    def __init__(
        self,
        engine: Engine,
        config: PretrainConfig,
        *,
        num_classes: int,
        group_images: int,
        account: TimeAccount,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.engine, self.micro_batch = engine, config.train.micro_batch
        self._seed, self._account = config.seed, account
        make = partial(make_loss, config.loss.name, config.loss.smoothing, class_weights=class_weights)
        self._loss, self._sample_loss = make(), make(per_sample=True)
        self.transform = TrainTransform(
            config.augment, device=engine.ranks.device, num_classes=num_classes, group_images=group_images
        )
        defer_statistics(engine.module)

    def step(
        self,
        batch: Batch,
        *,
        samples_seen: int,
        learning_rate: float,
        wish: int = 0,
        veto: Veto | None = None,
        label: str = "compute",
        refused: bool = False,
    ) -> PretrainResult:
        """Train on this rank's share of a step.

        Args:
            batch: the share.
            samples_seen: the step's position; seeds whatever draws from torch's own generator.
            learning_rate: of this step.
            wish: bits that this rank wants to tell the others.
            veto: judges the loss of all ranks before anything is changed; True refuses the step.
            label: the account's class for the time.
            refused: by this rank, whatever it is; all others then refuse it, too.

        Raises:
            Distrusted: some ranks refused the step, and others took it.
        """
        torch.manual_seed(derive_key(self._seed, _STEP_KEY, samples_seen) & ((1 << 63) - 1))
        ranks = self.engine.ranks
        with self._account.measure(label):
            update = self.engine.step(
                self._micro_batches(batch),
                loss_of=self._loss_of,
                lr=learning_rate,
                veto=self._ask_all(veto, refused=refused),
            )
        digest = digest_of_positions(batch.seen.numpy())
        loss, norm, took = float(update.loss), update.gradient_norm, self.engine.own_seconds
        # The norm too, by which the guard judges: where one rank's copy is wrong all must still judge alike.
        own = [loss, norm, took, wish, digest, len(batch.bad)]
        with self._account.measure(label):
            with self._account.measure("communication", inside="compute"):
                told = ranks.table(torch.tensor(own, dtype=torch.float64, device=ranks.device))
                losses, norms, seconds, wishes, digests, bad = told.T.tolist()
                require_one_verdict(norms, samples_seen=samples_seen, ranks=ranks)
                self.engine.state.settle_statistics(applied=update.applied)
            if update.applied:
                self.engine.state.update_ema()
        return PretrainResult(
            samples=batch.step_samples(ranks.world_size),
            losses=losses,
            seconds=seconds,
            gradient_norm=norms[0],
            learning_rate=learning_rate,
            applied=update.applied,
            digest=sum(map(int, digests)),
            wishes=[int(one) for one in wishes],
            bad=int(sum(bad)),
        )

    def sample_losses(self, batch: Batch) -> Tensor:
        """Return each sample's own loss, augmented as in training, by the model's weights as they are.

        Shape: (n,) on the CPU.
        """
        found = []
        with self.engine.evaluating() as forward:
            for part in self._micro_batches(batch):
                pixels, targets, _, _ = self.transform(*part)
                found.append(self._sample_loss(forward(pixels), targets).cpu())
        return torch.cat(found)

    def rehearse(self, *, image_size: int, samples: int) -> None:
        """Go through a step on blank images and refuse it: memory and shapes fail before data are read."""
        blank = Batch.blank(image_size=image_size, samples=samples)
        result = self.step(blank, samples_seen=0, learning_rate=0.0, veto=lambda loss: True, label="start")
        assert not result.applied

    def rehearse_alone(self, *, image_size: int, samples: int) -> None:
        """Go through a micro-batch on blank images on this rank alone; nobody waits if it fails."""
        micro_batch = Batch.blank(image_size=image_size, samples=samples), slice(0, samples)
        try:
            self.engine.rehearse_alone(micro_batch, loss_of=self._loss_of)
        finally:
            defer_statistics(self.engine.module)

    def _micro_batches(self, batch: Batch) -> list[tuple[Batch, slice]]:
        size = self.micro_batch or len(batch)
        return [(batch, slice(begin, begin + size)) for begin in range(0, len(batch), size)]

    def _loss_of(self, model: nn.Module, part: tuple[Batch, slice]) -> Tensor:
        pixels, targets, keys, weights = self.transform(*part)
        return self._loss(model(pixels, sample_keys=keys), targets, weights)

    def _ask_all(self, veto: Veto | None, *, refused: bool) -> Callable[[Tensor], bool] | None:
        def ask(loss: Tensor) -> bool:
            if veto is None:
                return True
            mean = loss.detach().double()
            self.engine.ranks.all_reduce_sum(mean)
            return veto(float(mean) / self.engine.ranks.world_size) or refused

        return ask if veto or refused else None
