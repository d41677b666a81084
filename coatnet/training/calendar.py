"""When things happen in a run: batches, sizes, rates, evaluations, saves, the end; by samples seen alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coatnet.config import Duration, UserError
from coatnet.training.schedule import LearningRate


@dataclass(frozen=True)
class Change:
    """From sample `at` on a run has another global batch or image size."""

    at: int
    global_batch: int
    image_size: int


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with one global batch and image size: steps that begin in [begin, end)."""

    begin: int
    end: int
    global_batch: int
    image_size: int


@dataclass(frozen=True)
class Calendar:
    """A run's calendar.

    Units: samples.

    Attributes:
        phases: stretches of one global batch and image size, each a whole number of steps; where the tails of
            epochs are masked, steps differ in samples, and a stretch ends with the step that reaches its end.
        save_samples: distance between saves; None where they go by the clock.
    """

    phases: list[Phase]
    epoch_samples: int
    evaluate_samples: int
    save_samples: int | None
    learning_rate: LearningRate

    @classmethod
    def make(cls, config: Any, *, epoch_samples: int, changes: Sequence[Change] = ()) -> Calendar:
        """Turn a config's durations into samples.

        Args:
            config: a root schema with the sections data, train, augment, optimizer, schedule, evaluate and
                save.
            epoch_samples: samples in an epoch.
            changes: in order of time, besides `train.phases`, which share the duration.

        Raises:
            UserError: a run without a step, or changes out of order.
        """
        batch, whole_steps = config.train.global_batch, config.data.tail != "mask"

        def samples(text: str) -> int:
            return Duration.parse(text).in_samples(
                epoch_samples=epoch_samples, global_batch=batch, whole_steps=whole_steps
            )

        total = samples(config.train.duration)
        first = Change(0, batch, config.augment.image_size)
        changes = [*_resolutions(config.train, total), *changes]
        phases = _phases(first, changes, total, whole_steps=whole_steps)
        save = Duration.parse(config.save.every)
        return cls(
            phases=phases,
            epoch_samples=epoch_samples,
            evaluate_samples=max(batch, samples(config.evaluate.every)),
            save_samples=None if save.is_time else max(batch, samples(config.save.every)),
            learning_rate=LearningRate(
                peak=config.optimizer.learning_rate,
                minimum=min(config.schedule.minimum, config.optimizer.learning_rate),
                warmup_samples=min(samples(config.schedule.warmup), phases[-1].end),
                total_samples=phases[-1].end,
                shape=config.schedule.shape,
            ),
        )

    @property
    def total(self) -> int:
        """The run's last sample."""
        return self.phases[-1].end

    def phase_at(self, samples_seen: int) -> Phase:
        """Return the phase of the step that begins at a position."""
        return next(phase for phase in self.phases if samples_seen < phase.end)

    def evaluation_due(self, *, before: int, after: int) -> bool:
        """Tell whether the step from `before` to `after` crosses a time for evaluation, or ends the run."""
        return after >= self.total or after // self.evaluate_samples > before // self.evaluate_samples

    def save_due(self, *, before: int, after: int) -> bool:
        """Tell the same of a save by samples."""
        crossed = self.save_samples and after // self.save_samples > before // self.save_samples
        return after >= self.total or bool(crossed)


def _resolutions(train: Any, total: int) -> list[Change]:
    """Return where the resolutions of a progressive run begin, by their shares of its samples.

    Raises:
        UserError: the last one's share is no sample.
    """
    shares = [phase.share for phase in train.phases]
    found = [
        Change(round(total * sum(shares[:number]) / sum(shares)), train.global_batch, phase.image_size)
        for number, phase in enumerate(train.phases)
    ]
    if found and found[-1].at >= total > 0:
        raise UserError(
            f"train.phases: the last one's share, {shares[-1]:g} of {sum(shares):g}, is none of the "
            f"{total:,} images of train.duration; give it a larger one, or leave it out"
        )
    return found


def _phases(first: Change, changes: Sequence[Change], total: int, *, whole_steps: bool) -> list[Phase]:
    phases: list[Phase] = []
    begin, now = 0, first
    for later in [*changes, Change(total, 0, 0)]:
        unit = now.global_batch if whole_steps else 1
        samples = round((later.at - begin) / unit) * unit
        if samples < 0 or (later.at >= total and later.global_batch):
            raise UserError(
                f"train: a change at sample {later.at} comes after sample {max(begin, total)}; "
                "put train.batch_changes and train.phases in order, before the end"
            )
        if samples:
            phases.append(Phase(begin, begin + samples, now.global_batch, now.image_size))
            begin += samples
        now = later
    if not phases:
        raise UserError(
            f"train.duration comes to {total} samples, less than a step of {first.global_batch}; "
            "make it longer, or train.global_batch smaller"
        )
    return phases
