"""Slow ranks, collection at one moment, and traces of chosen steps."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coatnet.runtime.ranks import Ranks
from pretrain.health import Health, weight_digest
from pretrain.profiler import StepProfiler
from pretrain.sections import GuardConfig


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_a_rank_that_is_slow_in_most_steps_is_named_and_one_slow_step_is_not() -> None:
    health, found = Health(GuardConfig(), ranks=Ranks(world_size=4), stage=1), []
    for step in range(1, 101):
        found += health.after_step(step, [0.1, 5.0 if step == 7 else 0.1, 0.2 if step > 50 else 0.1, 0.1])
    assert found == [{"straggler": 2, "seconds": 0.2, "usual": 0.1}]


def test_a_resumed_run_judges_nobody_by_fewer_steps_than_a_whole_window() -> None:
    health = Health(GuardConfig(), ranks=Ranks(world_size=2), stage=1)
    found = [health.after_step(step, [0.1, 0.3]) for step in range(31, 101)]
    assert [bool(one) for one in found] == [False] * 69 + [True]


def test_of_two_ranks_the_slow_one_is_compared_with_the_other_and_not_with_both() -> None:
    health, found = Health(GuardConfig(), ranks=Ranks(world_size=2), stage=1), []
    for step in range(1, 51):
        found += health.after_step(step, [0.1, 0.15])
    assert found == [{"straggler": 1, "seconds": 0.15, "usual": 0.1}]


def test_two_slow_ranks_of_four_are_both_named_as_either_is_compared_with_the_others_alone() -> None:
    health = Health(GuardConfig(), ranks=Ranks(world_size=4), stage=1)
    found = [health.after_step(step, [0.1, 0.1, 0.3, 0.3]) for step in range(1, 51)][-1]
    assert [one["straggler"] for one in found] == [2, 3] and {one["usual"] for one in found} == {0.1}


def test_the_config_says_how_much_slower_is_slow() -> None:
    health = Health(GuardConfig(straggler_ratio=1.6), ranks=Ranks(world_size=2), stage=1)
    assert not any(health.after_step(step, [0.1, 0.15]) for step in range(1, 51))


def test_a_rank_alone_is_never_slow() -> None:
    health = Health(GuardConfig(), ranks=Ranks(), stage=1)
    assert not any(health.after_step(step, [0.1]) for step in range(1, 101))


@pytest.mark.parametrize(
    ("digests", "wrong"),
    [([5, 6, 5, 5], [1]), ([6, 5, 5, 7, 5], [0, 3]), ([5, 6], []), ([1, 1, 2, 2], []), ([1, 2, 3], [])],
)
def test_a_rank_whose_weights_differ_is_named_by_a_majority_and_by_nothing_less(
    monkeypatch: pytest.MonkeyPatch, digests: list[int], wrong: list[int]
) -> None:
    monkeypatch.setattr(Ranks, "gather", lambda self, own: digests)
    health = Health(GuardConfig(), ranks=Ranks(world_size=len(digests)), stage=1)
    assert health.differing_weights(nn.Identity()) == {"ranks": wrong, "digests": digests}


@pytest.mark.parametrize(("stage", "compared"), [(2, True), (3, False)])
def test_at_stage_three_the_statistics_are_compared_and_not_the_weights_of_which_each_rank_has_a_part(
    monkeypatch: pytest.MonkeyPatch, stage: int, compared: bool
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Ranks, "gather", lambda self, own: told.append(own) or [own, own])
    health = Health(GuardConfig(), ranks=Ranks(world_size=2), stage=stage)
    model = nn.BatchNorm1d(4)
    assert health.differing_weights(model) is None
    model.weight.data += 1
    assert health.differing_weights(model) is None and (told[1] != told[0]) == compared
    model.running_mean += 1
    assert health.differing_weights(model) is None and told[2] != told[1]


@pytest.mark.parametrize(("every", "due"), [(5, [5, 10]), (0, [])])
def test_weights_are_compared_every_so_many_steps_or_never(every: int, due: list[int]) -> None:
    health = Health(GuardConfig(digest_every=every), ranks=Ranks(), stage=1)
    assert [step for step in range(1, 13) if health.compares_weights_at(step)] == due


def test_garbage_is_collected_at_the_same_steps_everywhere_and_never_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    health = Health(GuardConfig(collect_every=10, digest_every=0), ranks=Ranks(), stage=1)
    assert not gc.isenabled() and gc.get_freeze_count() > 0
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(step))
    for step in range(1, 31):
        health.after_step(step, [0.1])
    assert collected == [10, 20, 30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_flipped_bit_changes_the_digest_of_the_weights(dtype: torch.dtype) -> None:
    model = nn.Linear(5, 3).to(dtype)
    before = weight_digest(model)
    kind = torch.int16 if dtype == torch.bfloat16 else torch.int32
    for bit in (0, 7, 15):
        model.weight.data.view(kind)[1, 2] ^= 1 << bit if bit < 15 else -(1 << 15)
        assert weight_digest(model) != before
        model.weight.data.view(kind)[1, 2] ^= 1 << bit if bit < 15 else -(1 << 15)
    assert weight_digest(model) == before


def silent() -> dict[str, Any]:
    return {"patience": nullcontext, "alarm": pytest.fail}


def trace(window: range, folder: Path, *, first: int = 1, **parts: Any) -> StepProfiler:
    parts = {"ranks": Ranks(rank=3), **silent(), **parts}
    profiler = StepProfiler(window, folder=folder, **parts)
    profiler.before_step(first)
    for step in range(first, 6):
        with torch.profiler.record_function(f"step number {step}"):
            torch.ones(4) @ torch.ones(4)
        profiler.after_step(step)
        profiler.before_step(step + 1)
    return profiler


@pytest.mark.slow
@pytest.mark.parametrize(("window", "first"), [(range(1, 3), 1), (range(2, 4), 1), (range(2, 4), 3)])
def test_exactly_the_chosen_steps_are_traced_also_after_a_resume(
    tmp_path: Path, window: range, first: int, capfd: pytest.CaptureFixture[str]
) -> None:
    trace(window, tmp_path, first=first)
    assert capfd.readouterr().err == "", "kineto tells of each start and stop if it is let"
    (file,) = tmp_path.iterdir()
    assert file.name == f"steps-{max(window.start, first)}-{window.stop - 1}-rank3.json"
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    traced = {step for step in range(1, 6) if f"step number {step}" in names}
    assert traced == {step for step in window if step >= first}


class Four(Ranks):
    """A rank of four, of which the others left no trace for want of room; notes what it says."""

    def say(self, text: str) -> None:
        said.append(text)

    def gather(self, value: Any) -> list[Any]:
        return [None, "no room", "no room", value]


said: list[str] = []


def test_a_trace_is_written_where_ranks_are_patient_and_announced_before(tmp_path: Path) -> None:
    """It may take minutes, in which a watchdog would see a hang, and torch lets no other thread speak."""
    seen: list[list[str]] = []

    @contextmanager
    def patience() -> Iterator[None]:
        seen.append([file.name for file in tmp_path.iterdir()])
        assert said == [f"profile.steps: writes the traces of steps 2 to 3: {tmp_path}"]
        yield
        seen.append([file.name for file in tmp_path.iterdir()])

    said.clear()
    trace(range(2, 4), tmp_path, patience=patience, ranks=Four(rank=3), alarm=said.append)
    assert seen == [[], ["steps-2-3-rank3.json"]]


def test_traces_that_other_ranks_could_not_write_are_told_of(tmp_path: Path) -> None:
    alarms: list[str] = []
    trace(range(2, 4), tmp_path, ranks=Four(rank=3), alarm=alarms.append)
    assert alarms == ["profile.steps: 2 ranks left no trace; rank 1: no room"]


def test_a_trace_for_which_there_is_no_room_is_told_of_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_kineto_on_a_full_disk(profiler: Any, path: str) -> None:
        Path(f"{path}.tmp").write_text("half of i")

    alarms: list[str] = []
    trace(range(1, 3), Path("/dev/null/profile"), alarm=alarms.append)
    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", as_kineto_on_a_full_disk)
    trace(range(1, 3), tmp_path, alarm=alarms.append)
    assert not [*tmp_path.iterdir()] and len(alarms) == 2
    assert all(text.startswith("profile.steps: 1 rank left no trace; rank 0: ") for text in alarms)
    assert "steps-1-2-rank3.json could not be written" in alarms[1]


@pytest.mark.parametrize("stopped_after", [0, 5])
def test_a_stop_right_before_the_window_leaves_no_trace(tmp_path: Path, stopped_after: int) -> None:
    profiler = StepProfiler(range(stopped_after + 1, 9), folder=tmp_path, ranks=Ranks(), **silent())
    profiler.before_step(stopped_after + 1)
    profiler.close(stopped_after)
    assert not any(tmp_path.iterdir())


def test_a_window_that_a_stop_cuts_off_leaves_the_steps_until_then(tmp_path: Path) -> None:
    profiler = trace(range(4, 100), tmp_path)
    assert not any(tmp_path.iterdir())
    profiler.close(5)
    (file,) = tmp_path.iterdir()
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert file.name == "steps-4-5-rank3.json" and {"step number 4", "step number 5"} <= names
    profiler.close(5)


def test_nothing_is_traced_or_written_when_it_is_off(tmp_path: Path) -> None:
    assert trace(range(0), tmp_path / "profile")._profiler is None
    assert not (tmp_path / "profile").exists()
