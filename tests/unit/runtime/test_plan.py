"""A run asks whoever can plan, and keeps the answer; nobody's answer and a plan's refusal stop no run."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from coatnet.config import UserError
from coatnet.runtime import plan
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, read_lines


def answer(
    config: dict[str, Any], *, world_size: int, ranks_per_node: int, device: str, rates: Any
) -> dict[str, Any]:
    return {"step_seconds": config["seconds"] * world_size, "device": device}


def refuse(config: dict[str, Any], *, world_size: int, ranks_per_node: int, device: str, rates: Any) -> None:
    raise UserError("train.global_batch does not divide")


def pass_on(config: dict[str, Any], *, world_size: int, ranks_per_node: int, device: str, rates: Any) -> None:
    return None


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def declare(monkeypatch: pytest.MonkeyPatch, *functions: Any) -> None:
    class Point(EntryPoint):
        def load(self) -> Any:
            return next(one for one in functions if one.__name__ == self.name)

    points = [Point(one.__name__, "nowhere", "coatnet.planners") for one in functions]
    monkeypatch.setattr(plan, "entry_points", lambda *, group: points)


def test_the_first_answer_is_kept(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, pass_on, answer)
    plan.write_plan(run, config={"seconds": 2}, ranks=Ranks(world_size=4, local_world_size=2))
    assert json.loads(run.plan.read_text()) == {"step_seconds": 8, "device": "cpu"}


def test_a_refusal_is_an_event_and_no_end(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, refuse)
    plan.write_plan(run, config={}, ranks=Ranks(world_size=4, local_world_size=2))
    assert not run.plan.exists()
    (event,) = read_lines(run.events)
    assert event["kind"] == "no_plan" and "does not divide" in event["reason"]


def test_without_planners_there_is_no_plan(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch)
    plan.write_plan(run, config={}, ranks=Ranks())
    assert not run.plan.exists()
