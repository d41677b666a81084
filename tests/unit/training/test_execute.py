"""What a rank does before it trains: a longer run on cores is planned by what they attain at that moment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coatnet.config import UserError, load_config, to_dict
from coatnet.runtime.endings import RankError
from coatnet.runtime.lease import Lease
from coatnet.runtime.plan import write_plan
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.training.execute import early_end_recorded, plan_for_this_hour, tell_plan
from pretrain.config import PretrainConfig


@pytest.mark.slow
@pytest.mark.parametrize(
    ("duration", "hardware"),
    [("2 steps", "cpu2"), ("100000 steps", "cpu2, measured"), ("30 epochs", "cpu2, measured")],
)
def test_only_a_longer_run_is_planned_by_what_its_cores_attain(
    duration: str, hardware: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatnet.training.execute._MEASURING_SECONDS", 0.0)  # three rounds
    words = [
        f"train.duration={duration}",
        "train.global_batch=8",
        "train.micro_batch=8",
        "model.depths=[1,1,1,1,1]",
    ]
    words += ["model.widths=[16,16,32,32,32]", "augment.image_size=64"]
    config = load_config(PretrainConfig, overrides=[*words, "data.train=[{path: nowhere}]"])
    run, ranks = RunDirectory(tmp_path), Ranks.single()
    write_plan(run, config=to_dict(config), ranks=ranks)
    plan_for_this_hour(run, config=config, ranks=ranks)
    assert json.loads(run.plan.read_text())["hardware"] == hardware


def test_the_plan_is_told_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    tell_plan(run)  # nobody could plan it
    plan = {"step_seconds": 390.25, "global_batch": 4096, "days": 1 / 12}
    run.plan.write_text(json.dumps(plan))
    tell_plan(run)
    assert capsys.readouterr().err == f"{tmp_path}: planned 390 s a step of 4,096 images, 2:00:00 in all\n"


def test_the_error_by_which_a_life_ends_is_an_event_unless_another_job_has_the_run(tmp_path: Path) -> None:
    run, first = RunDirectory(tmp_path), Ranks.single()
    second = replace(first, rank=1, world_size=2)
    lease = Lease.acquire(tmp_path)
    for ranks, held, error in (
        (first, lease, UserError("3 rollbacks,\nas many as allowed")),
        (second, None, UserError("what the first one said")),
        (second, None, RankError("out of memory")),
    ):
        with pytest.raises(type(error)), early_end_recorded(run, ranks=ranks, lease=held):
            raise error
    (tmp_path / "lease" / f"epoch-{lease.epoch + 1:08d}").touch()
    with pytest.raises(RuntimeError), early_end_recorded(run, ranks=first, lease=lease):
        raise RuntimeError("a peer was ended by the job that took over")
    lease.release()
    told = [(event["kind"], event["rank"], event["reason"]) for event in run.read_events()]
    assert told == [("ended", 0, "3 rollbacks, as many as allowed"), ("ended", 1, "out of memory")]
