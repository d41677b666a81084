"""When things happen in a run: batches, rates, evaluations, saves, the end; by samples seen alone."""

from __future__ import annotations

from dataclasses import dataclass

from coatnet.config import Duration, UserError
from coatnet.training.schedule import LearningRate
from pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with one global batch, from sample `begin` up to `end`."""

    begin: int
    end: int
    global_batch: int


@dataclass(frozen=True)
class Calendar:
    """A run's calendar.

    Units: samples, except `save_seconds`.

    Attributes:
        phases: stretches of one global batch, each a whole number of steps.
        save_samples, save_seconds: distance between saves; one of them is None.
    """

    phases: list[Phase]
    epoch_samples: int
    evaluate_samples: int
    save_samples: int | None
    save_seconds: float | None
    learning_rate: LearningRate

    @classmethod
    def make(cls, config: PretrainConfig, *, epoch_samples: int) -> Calendar:
        """Turn the config's durations into samples.

        Raises:
            UserError: a run without a step, or batch changes out of order.
        """
        train, batch = config.train, config.train.global_batch

        def samples(text: str) -> int:
            return Duration.parse(text).in_samples(epoch_samples=epoch_samples, global_batch=batch)

        phases = _phases(
            batch,
            changes=[(samples(change.at), change.global_batch) for change in train.batch_changes],
            total=samples(train.duration),
        )
        save = Duration.parse(config.save.every)
        return cls(
            phases=phases,
            epoch_samples=epoch_samples,
            evaluate_samples=max(batch, samples(config.evaluate.every)),
            save_samples=None if save.is_time else max(batch, samples(config.save.every)),
            save_seconds=save.value if save.is_time else None,
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


def _phases(global_batch: int, *, changes: list[tuple[int, int]], total: int) -> list[Phase]:
    phases: list[Phase] = []
    begin, batch = 0, global_batch
    for at, later_batch in [*changes, (total, 0)]:
        steps = round((at - begin) / batch)
        if steps < 0 or (at >= total and later_batch):
            raise UserError(
                f"train.batch_changes: one at sample {at} comes after sample {max(begin, total)}; "
                "put them in order, before the end"
            )
        if steps:
            phases.append(Phase(begin, begin + steps * batch, batch))
            begin += steps * batch
        batch = later_batch
    if not phases:
        raise UserError(
            f"train.duration comes to {total} samples, less than a step of {global_batch}; make it longer"
        )
    return phases
