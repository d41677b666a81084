"""When things happen, by samples."""

from __future__ import annotations

import pytest

from coatnet.config import UserError
from coatnet.training.calendar import Calendar, Phase
from coatnet.training.sections import PhaseConfig, SaveConfig, ScheduleConfig
from data_pipeline.augment_config import AugmentConfig
from data_pipeline.config import CorpusConfig, DataConfig
from pretrain.batches import group_images, make_calendar
from pretrain.config import PretrainConfig
from pretrain.sections import BatchChange, PretrainTrainConfig


def config(**sections: object) -> PretrainConfig:
    data = DataConfig(train=[CorpusConfig("shards")])
    schedule = ScheduleConfig(warmup="2 steps")
    return PretrainConfig(**{"data": data, "schedule": schedule, **sections})  # type: ignore[arg-type]


def calendar(*, epoch_samples: int = 100, **sections: object) -> Calendar:
    return make_calendar(config(**sections), epoch_samples=epoch_samples)


def test_epochs_become_whole_steps() -> None:
    made = calendar(train=PretrainTrainConfig(duration="3 epochs", global_batch=16))
    assert made.phases == [Phase(0, 304, 16, 224)] and made.total == 304


def test_where_tails_are_masked_epochs_are_whole_and_steps_need_not_be() -> None:
    masked = DataConfig(train=[CorpusConfig("shards")], tail="mask")
    made = calendar(data=masked, train=PretrainTrainConfig(duration="3 epochs", global_batch=16))
    assert made.phases == [Phase(0, 300, 16, 224)] and made.total == 300
    begins = [epoch + step for epoch in (0, 100, 200) for step in range(0, 100, 16)]
    ends = [*begins[1:], 300]
    due = [end for at, end in zip(begins, ends, strict=True) if made.evaluation_due(before=at, after=end)]
    assert due == [100, 200, 300]
    odd = calendar(epoch_samples=101, data=masked, train=PretrainTrainConfig("3 epochs", global_batch=16))
    assert odd.phases == [Phase(0, 303, 16, 224)]


def test_a_batch_that_grows_makes_phases_without_a_gap() -> None:
    changes = [BatchChange("4 steps", 32), BatchChange("12 steps", 64)]
    made = calendar(train=PretrainTrainConfig("320 images", 16, batch_changes=changes))
    assert made.phases == [Phase(0, 64, 16, 224), Phase(64, 192, 32, 224), Phase(192, 320, 64, 224)]
    assert [made.phase_at(at).global_batch for at in (0, 63, 64, 319)] == [16, 16, 32, 64]


@pytest.mark.parametrize(
    "changes",
    [
        [BatchChange("8 steps", 32), BatchChange("2 steps", 64)],
        [BatchChange("20 steps", 32)],  # the run's end
        [BatchChange("21 steps", 32)],
    ],
)
def test_batch_changes_out_of_order_or_behind_the_end_are_refused(changes: list[BatchChange]) -> None:
    told = r"^train: a change at sample \d+ comes after sample \d+; put train\.batch_changes and"
    with pytest.raises(UserError, match=rf"{told} train\.phases in order, before the end$"):
        calendar(train=PretrainTrainConfig("320 images", 16, batch_changes=changes))


def test_a_last_phase_whose_share_is_none_of_the_images_is_refused_by_it() -> None:
    phases = [PhaseConfig(128, 1.0), PhaseConfig(224, 1e-9)]
    with pytest.raises(
        UserError, match=r"train\.phases: the last one's share, 1e-09 of 1, is none of the 320 "
    ):
        calendar(train=PretrainTrainConfig("320 images", 16, phases=phases))


def test_resolutions_share_the_duration() -> None:
    grown = [PhaseConfig(128, 3), PhaseConfig(224, 1)]
    made = calendar(train=PretrainTrainConfig("320 images", 16, phases=grown))
    assert made.phases == [Phase(0, 240, 16, 128), Phase(240, 320, 16, 224)]
    with pytest.raises(ValueError, match="one of them"):
        PretrainTrainConfig(phases=grown, batch_changes=[BatchChange("8 steps", 32)])


def test_a_run_without_a_step_is_refused() -> None:
    told = (
        r"^train\.duration comes to 0 samples, less than a step of 16; make it longer, or "
        r"train\.global_batch smaller$"
    )
    with pytest.raises(UserError, match=told):
        calendar(train=PretrainTrainConfig(duration="4 images", global_batch=16))


def test_evaluation_falls_due_when_its_time_is_crossed_and_at_the_end() -> None:
    made = calendar(train=PretrainTrainConfig(duration="3 epochs", global_batch=16))
    due = [at for at in range(0, made.total, 16) if made.evaluation_due(before=at, after=at + 16)]
    assert due == [80, 176, 272, 288]


def test_saves_go_by_the_clock_or_by_samples() -> None:
    assert calendar(save=SaveConfig("5 minutes")).save_samples is None
    by_samples = calendar(save=SaveConfig("10 steps"), train=PretrainTrainConfig("9 epochs", 10))
    assert by_samples.save_samples == 100


@pytest.mark.parametrize(("every", "expected"), [("7 steps", [70, 140, 210, 270]), ("5 minutes", [270])])
def test_a_save_falls_due_when_its_time_is_crossed_and_at_the_end(every: str, expected: list[int]) -> None:
    made = calendar(save=SaveConfig(every), train=PretrainTrainConfig("270 images", 10))
    assert [at + 10 for at in range(0, 270, 10) if made.save_due(before=at, after=at + 10)] == expected


def test_the_warm_up_is_never_longer_than_the_run() -> None:
    made = calendar(schedule=ScheduleConfig(warmup="10000 steps"), train=PretrainTrainConfig("2 epochs", 10))
    assert made.learning_rate(made.total) == pytest.approx(1e-3)


@pytest.mark.parametrize(("minimum", "last"), [(1e-5, 1e-5), (1.0, 1e-3)])
def test_the_rate_ends_at_the_minimum_and_never_above_its_peak(minimum: float, last: float) -> None:
    made = calendar(
        schedule=ScheduleConfig(warmup="2 steps", minimum=minimum), train=PretrainTrainConfig("2 epochs", 10)
    )
    assert made.learning_rate(made.total) == pytest.approx(last)


@pytest.mark.parametrize(
    ("batch", "micro", "world_size", "key"),
    [(10, None, 3, "global_batch"), (12, 5, 2, "micro_batch")],
)
def test_batches_that_cannot_be_cut_name_their_key(
    batch: int, micro: int | None, world_size: int, key: str
) -> None:
    with pytest.raises(UserError, match=f"train.{key} is"):
        group_images(config(train=PretrainTrainConfig("1 epochs", batch, micro)), world_size=world_size)


def test_the_group_of_batch_norm_is_the_micro_batch_and_stays_what_it_was() -> None:
    made = config(train=PretrainTrainConfig("1 epochs", 24, 6))
    assert group_images(made, world_size=2) == 6
    assert group_images(made, world_size=4, settled=3) == 3
    with pytest.raises(UserError, match="since the first start"):
        group_images(made, world_size=2, settled=4)


def test_images_that_are_mixed_need_a_partner_in_their_group() -> None:
    alone = PretrainTrainConfig("1 epochs", 35, 1)
    assert group_images(config(train=alone), world_size=5) == 1
    with pytest.raises(UserError, match=r"norm\.group_images is 1; allowed with augment\.mixup"):
        group_images(config(train=alone, augment=AugmentConfig(mixup=0.2)), world_size=5)
