"""When things happen in a run, in samples: resolutions, evaluations, saves, the end. Knows no data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coatnet.config import Duration, UserError
from coatnet.training.schedule import LearningRate
from data_pipeline.augment_config import AugmentConfig
from finetune.config import FinetuneConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of the run at one resolution, up to the sample `end`."""

    augment: AugmentConfig
    end: int


@dataclass(frozen=True)
class Plan:
    """A run's calendar.

    Units: all in samples, multiples of the global batch.
    """

    total: int
    phases: list[Phase]
    evaluate_every: int
    save_every: int
    learning_rate: LearningRate

    @classmethod
    def make(cls, config: FinetuneConfig, *, epoch_samples: int) -> Plan:
        """Turn the config's durations into samples.

        Raises:
            UserError: a duration that comes out as no step at all.
        """

        def samples(key: str, text: str, *, least: int) -> int:
            count = Duration.parse(text).in_samples(
                epoch_samples=epoch_samples, global_batch=config.train.global_batch
            )
            if count < least:
                raise UserError(
                    f"{key} is {text!r}, which is no step at {epoch_samples} samples an epoch and a "
                    f"train.global_batch of {config.train.global_batch}"
                )
            return count

        total = samples("train.duration", config.train.duration, least=1)
        try:
            rate = LearningRate(
                peak=config.optimizer.learning_rate,
                minimum=config.schedule.minimum,
                warmup_samples=samples("schedule.warmup", config.schedule.warmup, least=0),
                total_samples=total,
                shape=config.schedule.shape,
            )
        except ValueError as error:
            raise UserError(f"schedule: {error}") from None
        return cls(
            total=total,
            phases=_phases(config, total=total),
            evaluate_every=samples("evaluate.every", config.evaluate.every, least=1),
            save_every=samples("save.every", config.save.every, least=1),
            learning_rate=rate,
        )


def _phases(config: FinetuneConfig, *, total: int) -> list[Phase]:
    if not config.train.phases:
        return [Phase(config.augment, total)]
    batch, shares = config.train.global_batch, sum(phase.share for phase in config.train.phases)
    phases: list[Phase] = []
    done = 0.0
    for phase in config.train.phases:
        done += phase.share
        end = round(total * done / shares / batch) * batch
        phases.append(Phase(replace(config.augment, image_size=phase.image_size), end))
    return phases


def is_due(every: int, *, before: int, after: int) -> bool:
    """Say whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every
