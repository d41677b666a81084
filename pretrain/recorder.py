"""What a run writes about itself: metrics, events, the terminal line. Only the main rank has a voice."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch

from coatnet.runtime.account import TimeAccount
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.progress import Progress
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from data_pipeline.batch import Batch
from pretrain.guard import Verdict
from pretrain.state import State
from pretrain.trainer import StepResult
from pretrain.utilisation import peak_flops

_RECORD_SECONDS = 0.5
_FLUSH_SECONDS = 10.0
_PICTURES = 16


class Recorder:
    """Writes metrics at most twice a second, and every event."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        ranks: Ranks,
        account: TimeAccount,
        metrics: MetricsLog,
        total: int,
        flops_per_image: float,
    ) -> None:
        self._run, self._ranks, self._account, self._metrics = run, ranks, account, metrics
        self._total = total
        peak = peak_flops()
        self._mfu_per_rate = flops_per_image / (peak * ranks.world_size) if peak else None
        self._update_norm: float | None = None
        self._shown = False
        self._recorded_at = self._flushed_at = time.monotonic()
        self._samples = 0
        self._data_wait_seconds = 0.0
        self._skipped = self._bad = 0

    def event(self, kind: str, **fields: Any) -> None:
        """Write an event of the whole run."""
        if self._ranks.is_main:
            self._run.record_event(kind, **fields)

    def step(self, state: State, batch: Batch, result: StepResult, verdict: Verdict, bar: Progress) -> None:
        """Record a step."""
        if not self._shown:
            self._shown = True
            pictures = batch.images[:_PICTURES].numpy()
            self._metrics.images("train/images", pictures, samples_seen=state.samples_seen)
        self._bad += len(batch.bad)
        for sample in batch.bad:
            self._run.record_event("bad_sample", rank=self._ranks.rank, **sample.to_dict())
        if verdict.event is not None:
            self._skipped += not result.applied
            self._name_samples(state, batch, result, verdict)
        self._samples += result.samples
        bar.advance(result.samples)
        now = time.monotonic()
        if now - self._recorded_at >= _RECORD_SECONDS or state.samples_seen >= self._total:
            bar.note(f"loss {result.loss:.3f}")
            self._metrics.scalars(
                self._scalars(state, result, now - self._recorded_at), samples_seen=state.samples_seen
            )
            self._recorded_at, self._samples = now, 0
        self._account.flush(samples_seen=state.samples_seen, now=False)
        if now - self._flushed_at >= _FLUSH_SECONDS:
            self.flush(state)

    def evaluation(
        self, state: State, figures: dict[str, float], *, confusion: torch.Tensor | None = None
    ) -> None:
        """Record what an evaluation found; the confusion matrix as a picture, rows being the true classes."""
        if confusion is not None:
            shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
            picture = shares[None, :, :, None].expand(-1, -1, -1, 3).numpy()
            self._metrics.images("evaluate/confusion", picture, samples_seen=state.samples_seen)
        self._metrics.scalars(
            {f"evaluate/{name}": value for name, value in figures.items()}, samples_seen=state.samples_seen
        )

    def flush(self, state: State) -> None:
        """Hand metrics and the time account to the file system."""
        self._account.flush(samples_seen=state.samples_seen)
        self._metrics.flush()
        self._flushed_at = time.monotonic()

    def _scalars(self, state: State, result: StepResult, seconds: float) -> dict[str, float]:
        waited = self._account.seconds()["data_wait"]
        share = (waited - self._data_wait_seconds) / seconds
        self._data_wait_seconds = waited
        return {
            "train/loss": result.loss,
            "train/loss_max": max(result.losses),
            "train/gradient_norm": result.gradient_norm,
            "train/learning_rate": result.learning_rate,
            "train/global_batch": result.samples,
            "images_per_second": self._samples / seconds,
            "data_wait_share": share,
            "skipped_steps": self._skipped,
            "bad_samples": self._bad,
            **_memory(),
            **self._now_and_then(self._samples / seconds),
            "progress": state.samples_seen / self._total,
        }

    def update_norm(self, value: float) -> None:
        """Note what is computed only every so many steps."""
        self._update_norm = value

    def _now_and_then(self, rate: float) -> dict[str, float]:
        found = {} if self._mfu_per_rate is None else {"mfu": rate * self._mfu_per_rate}
        if self._update_norm is not None:
            found["train/update_norm"], self._update_norm = self._update_norm, None
        return found

    def _name_samples(self, state: State, batch: Batch, result: StepResult, verdict: Verdict) -> None:
        """Every rank names its own samples of a step that was not in order."""
        assert verdict.event is not None
        self._run.record_event(
            verdict.event,
            rank=self._ranks.rank,
            step=state.step,
            samples_seen=state.samples_seen,
            loss=str(result.losses[self._ranks.rank]),
            gradient_norm=str(result.gradient_norm),
            score=str(round(verdict.score, 2)),
            positions=batch.positions.tolist(),
        )


def _memory() -> dict[str, float]:
    """The most memory of the device in use so far, or of the process on a CPU."""
    if torch.cuda.is_available():
        return {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}
    return {"memory_gib": psutil.Process().memory_info().rss / 2**30}
