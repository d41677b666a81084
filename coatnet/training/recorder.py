"""What a run writes about itself: metrics, events, the terminal line. Only the main rank has a voice."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lives import CLASSES, LifeAccount, add_up
from coatnet.runtime.metrics_log import MetricsLog
from coatnet.runtime.progress import Progress
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.training.earlier import Earlier
from coatnet.training.pictures import account_figure, confusion_figure
from coatnet.training.state import RunState

_RECORD_SECONDS = 0.5
# Of the run's age, up to the longest: an hour is seen in full, and weeks leave 200,000 records, not millions.
_RECORD_SHARE, _LONGEST_RECORD_SECONDS = 1e-4, 10.0
_PAUSES = ("start", "compile", "evaluation")  # in which no step is taken: rates are of the time without
FLUSH_RECORDS = 20
# Pictures, of two megabytes together, come at most once a minute and, as a run grows old, once in so much of
# its age: after each of thousands of evaluations they left gigabytes, which TensorBoard reads at every start.
_DRAW_SECONDS, _DRAW_SHARE = 60.0, 0.05
_MOST_STRETCHES = 120

# What a rank may ask of all at the end of a step, one bit each. The last: it was told to stop while it waited
# for its batch; the step is refused by all, and nobody's.
STOP, SAVE, LEAVE = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, equal on all ranks.

    Attributes:
        losses: the ranks' mean losses, in order of rank.
        gradient_norm: before clipping; infinite when the step was refused.
        wishes: what each rank asks for, as bits.
        bad: samples of all ranks that could not be used.
    """

    samples: int
    losses: list[float]
    gradient_norm: float
    learning_rate: float
    applied: bool
    wishes: list[int]
    bad: int = 0

    @property
    def loss(self) -> float:
        """The mean over all samples of the step."""
        return sum(self.losses) / len(self.losses)

    def counts(self) -> dict[str, Any]:
        """Return what moves the run's state on."""
        return {"samples": self.samples, "applied": self.applied, "bad": self.bad}

    def asks_for(self, bit: int) -> bool:
        """Tell whether any rank asks for what a bit stands for."""
        return any(wish & bit for wish in self.wishes)


class Recorder:
    """Writes metrics at most twice a second, more rarely as the run grows old, and every event."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        ranks: Ranks,
        account: TimeAccount,
        metrics: MetricsLog,
        total: int,
        augmented: Callable[[Any], torch.Tensor],
        flops_per_image: Callable[[int], float],
        peak_flops: float | None,
    ) -> None:
        """Write for one life of a run.

        Args:
            run, ranks, account, metrics: of the run.
            total: its samples.
            augmented: pictures of what the model sees of a batch.
            flops_per_image: of training at a position; phases differ in the images' size.
            peak_flops: of a rank's device, None where that is not known.
        """
        self._run, self._ranks, self._account, self._metrics = run, ranks, account, metrics
        self._total, self._augmented = total, augmented
        self._show_pictures = True
        self._flops_per_image, self._peak = flops_per_image, peak_flops
        self._recorded_at = self._flushed_at = time.monotonic()
        self._record_seconds, self._record_next = _RECORD_SECONDS, False
        self._drawn_at = -math.inf
        self._paused_then = self._paused_seconds()
        self._samples = self._steps = 0
        self._data_wait_seconds = 0.0
        self._unread: set[str] = set()
        self._history = [dict.fromkeys(CLASSES, 0.0)]
        self._earlier_seconds = dict.fromkeys(CLASSES, 0.0)

    def remember(self, earlier: Earlier, lives: list[LifeAccount]) -> None:
        """Go on counting where the accounts of earlier lives end."""
        self._history += [
            {name: float(row[f"account/{name}"]) for name in CLASSES} for row in earlier.accounts
        ]
        self._earlier_seconds = add_up(lives)
        for own in (one for one in lives if one.life == self._account.life):
            for name, seconds in own.seconds.items():
                self._earlier_seconds[name] -= seconds

    def event(self, kind: str, **fields: Any) -> None:
        """Write an event of the whole run."""
        if self._ranks.is_main:
            self._run.record_event(kind, **fields)

    def alarm(self, text: str) -> None:
        """Say aloud, and keep as an event, what went wrong and was survived."""
        self._ranks.say(f"warning: {text}")
        self.event("alarm", text=text)

    def step(
        self,
        state: RunState,
        batch: Any,
        result: StepResult,
        bar: Progress,
        *,
        event: str | None = None,
        score: float = 0.0,
    ) -> None:
        """Record a step; `event` is the kind of one that was not in order, whose samples are named."""
        if self._show_pictures and self._ranks.is_main:
            self._show_pictures = False
            pictures = self._augmented(batch)
            self._metrics.images("train/images_as_augmented", pictures, samples_seen=state.samples_seen)
        for sample in batch.bad:
            self._run.record_event(
                "bad_sample", writer=self._ranks.rank, rank=self._ranks.rank, **sample.to_dict()
            )
        if event is not None:
            self._ranks.say(
                f"step {state.step}: {event.replace('_', ' ')}, loss {result.loss:.4g}, gradient norm "
                f"{result.gradient_norm:.4g}" + (f", robust z-score {score:.4g}" if score else "")
            )
            self._name_samples(state, batch, result, event=event, score=score)
        self._samples += result.samples
        self._steps += 1
        bar.advance(result.samples)
        now = time.monotonic()
        due = now - self._recorded_at >= self._record_seconds or self._record_next
        if due or state.samples_seen >= self._total:
            bar.note(f"loss {result.loss:.3f}")
            self._record(state, result, now)
        self._account.reached(state.samples_seen)
        if now - self._flushed_at >= FLUSH_RECORDS * self._record_seconds:
            self.flush(state)

    def record_next(self) -> None:
        """Record the next step whenever it comes: a life that resumes before it is compared with that."""
        self._record_next = True

    def occasional(self, state: RunState, values: Mapping[str, float]) -> None:
        """Record what is computed only every so many steps."""
        if values:
            self._metrics.scalars(dict(values), samples_seen=state.samples_seen)

    def evaluation(
        self,
        state: RunState,
        figures: dict[str, float],
        *,
        bad: Sequence[Mapping[str, Any]] = (),
        confusion: torch.Tensor | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """Record what an evaluation found, the confusion as a picture, and the time account beside it.

        Args:
            bad: the samples of all ranks that could not be read, which no figure counts; each is named once.
        """
        if not self._ranks.is_main:
            return
        self._name_unread(bad)
        self._metrics.scalars(
            {f"evaluate/{name}": value for name, value in figures.items()}, samples_seen=state.samples_seen
        )
        self.flush(state)
        found = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if "samples" not in name)
        self._ranks.say(f"evaluated after {state.samples_seen:,} images: {found}")
        # Drawing takes the main rank half a second, in which the others wait.
        now, seldom = time.monotonic(), max(_DRAW_SECONDS, _DRAW_SHARE * self._age_seconds())
        if now - self._drawn_at >= seldom or state.samples_seen >= self._total:
            self._drawn_at, self._show_pictures = now, True
            with self._account.measure("evaluation"):
                self._draw(state, confusion, classes)

    def _name_unread(self, bad: Sequence[Mapping[str, Any]]) -> None:
        new = [sample for sample in bad if sample["name"] not in self._unread]
        self._unread.update(sample["name"] for sample in new)
        for sample in new:
            self._run.record_event("bad_sample", during="evaluation", **sample)
        if new:
            self._ranks.say(
                f"warning: images to evaluate on that cannot be read: {len(new):,}; events.jsonl names them"
            )

    def _draw(self, state: RunState, confusion: torch.Tensor | None, classes: Sequence[str]) -> None:
        pictures = {"account": account_figure(self._history)}
        if confusion is not None:
            pictures["evaluate/confusion"] = confusion_figure(confusion, classes)
        for name, picture in pictures.items():
            self._metrics.figure(name, picture, samples_seen=state.samples_seen)

    def flush(self, state: RunState) -> None:
        """Hand metrics to the file system, and what the time account has come to."""
        if self._ranks.is_main:
            own = self._account.seconds()
            spent = {name: self._earlier_seconds[name] + own[name] for name in CLASSES}
            self._metrics.scalars(
                {f"account/{name}": round(value, 3) for name, value in spent.items()},
                samples_seen=state.samples_seen,
            )
            self._history.append(spent)
            if len(self._history) > _MOST_STRETCHES:
                del self._history[1:-1:2]
        self._metrics.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Close the event files."""
        self._metrics.close()

    def _record(self, state: RunState, result: StepResult, now: float) -> None:
        """Write the figures of the steps since the last record."""
        paused = self._paused_seconds()
        seconds = now - self._recorded_at - (paused - self._paused_then)
        self._metrics.scalars(self._scalars(state, result, seconds), samples_seen=state.samples_seen)
        self._recorded_at, self._paused_then, self._samples, self._steps = now, paused, 0, 0
        self._record_seconds, self._record_next = seconds_between_records(self._age_seconds()), False

    def _age_seconds(self) -> float:
        """Return how old the run is, from its first start on."""
        return sum(self._earlier_seconds.values()) + sum(self._account.seconds().values())

    def _paused_seconds(self) -> float:
        """Return for how long this life could take no steps so far."""
        spent = self._account.seconds()
        return sum(spent[name] for name in _PAUSES)

    def _scalars(self, state: RunState, result: StepResult, seconds: float) -> dict[str, float]:
        waited = self._account.seconds()["data_wait"]
        share = (waited - self._data_wait_seconds) / seconds
        rate = self._samples / seconds
        self._data_wait_seconds = waited
        return {
            "train/loss": result.loss,
            "train/loss_max": max(result.losses),
            "train/gradient_norm": result.gradient_norm,
            "train/learning_rate": result.learning_rate,
            "train/global_batch": result.samples,
            "images_per_second": rate,
            "step_seconds": seconds / self._steps,
            "data_wait_share": share,
            "skipped_steps": state.step - state.applied_steps,
            "bad_samples": state.bad_samples,
            **_memory(),
            **self._utilisation(rate, begin=state.samples_seen - result.samples),
            "progress": state.samples_seen / self._total,
        }

    def _utilisation(self, images_per_second: float, *, begin: int) -> dict[str, float]:
        """Return the share of the devices' peak that a step from `begin` on uses, where that is known."""
        if self._peak is None:
            return {}
        return {
            "mfu": images_per_second * self._flops_per_image(begin) / (self._peak * self._ranks.world_size)
        }

    def _name_samples(
        self, state: RunState, batch: Any, result: StepResult, *, event: str, score: float
    ) -> None:
        """Every rank names its own samples of a step that was not in order."""
        self._run.record_event(
            event,
            writer=self._ranks.rank,
            rank=self._ranks.rank,
            step=state.step,
            samples_seen=state.samples_seen,
            loss=str(result.losses[self._ranks.rank]),
            gradient_norm=str(result.gradient_norm),
            score=str(round(score, 2)),
            positions=batch.positions.tolist(),
        )


def seconds_between_records(age_seconds: float) -> float:
    """Return how long a run of this age waits before it records a step again."""
    return min(max(_RECORD_SECONDS, _RECORD_SHARE * age_seconds), _LONGEST_RECORD_SECONDS)


def _memory() -> dict[str, float]:
    """The most memory that this rank had of its device so far, or on a CPU for its process."""
    if torch.cuda.is_available():
        return {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # given in KiB
