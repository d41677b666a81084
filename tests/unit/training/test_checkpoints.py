"""Which states are worth a checkpoint, and which checkpoints a run does not go on from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.ranks import Ranks
from coatnet.training.checkpoints import Checkpoints, Stream
from coatnet.training.sections import SaveConfig
from coatnet.training.state import RunState


class _Stream:
    def state(self) -> dict[str, Any]:
        return {}

    def check(self, saved: dict[str, Any]) -> None:
        assert saved == {}


def checkpoints_in(folder: Path, save: SaveConfig | None = None) -> Checkpoints[RunState]:
    return Checkpoints(
        folder / "new",
        save or SaveConfig(),
        tensors=cast(Any, SimpleNamespace(fragments=list)),
        stream=cast(Stream, _Stream()),
        ranks=Ranks.single(),
        lease=None,
        account=TimeAccount(folder / "account", rank=0, life=1, age_seconds=0.0),
        facts={"kind": "finetune"},
        alarm=print,
        state_type=RunState,
    )


def test_the_best_is_what_was_judged_when_it_was_judged_and_only_more_than_that_is_better(
    tmp_path: Path,
) -> None:
    """The step behind an evaluation has its figures no more: it would stay in the place of the judged one."""
    checkpoints, state = checkpoints_in(tmp_path, SaveConfig(last=1, best="top1")), RunState()
    found: dict[int, float] = {2: 0.5, 4: 0.5, 6: 0.4, 8: 0.7, 11: 0.6}
    better = []
    for step in range(1, 13):
        state.advance(samples=8, applied=True, bad=0)
        if step in found:
            state.figures = {"top1": found[step], "loss": 1.0}
        if checkpoints.store.would_be_best(state.figures):
            better.append(step)
        if step in better or step % 3 == 0:  # a save falls due by the clock
            checkpoints.save(state)
    assert better == [2, 8]
    checkpoints.store.close()
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "new").iterdir())
    assert kept == [8, 9, 12], "the last, one more until two were verified, and the best"
    assert Checkpoint(tmp_path / "new" / "step-00000009").facts["figures"] == {}


def test_what_an_evaluation_finds_after_a_save_of_its_step_is_told_by_that_checkpoint(tmp_path: Path) -> None:
    checkpoints, state = checkpoints_in(tmp_path, SaveConfig(last=1, best="top1")), RunState()
    state.advance(samples=8, applied=True, bad=0)
    state.unevaluated = True
    checkpoints.save(state, wait=True)
    (place,) = (tmp_path / "new").iterdir()
    written = {path.name: path.stat().st_ino for path in place.iterdir()}
    checkpoints.save(state, wait=True)
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == written, "there was nothing new"
    state.unevaluated, state.figures = False, {"top1": 0.5}
    assert checkpoints.store.would_be_best(state.figures)
    checkpoints.save(state)
    found = Checkpoint(place)
    found.verify()
    assert found.facts["figures"] == {"top1": 0.5} and not found.facts["progress"]["unevaluated"]
    rank_file = "rank-00000.safetensors"
    assert {path.name for path in place.iterdir()} == {rank_file, "manifest.json"}
    assert (place / rank_file).stat().st_ino == written[rank_file]
    assert not checkpoints.store.would_be_best({"top1": 0.4})
    checkpoints.store.close()


@pytest.mark.parametrize(("best", "figures"), [(None, {"top1": 0.9}), ("top1", {}), ("top1", {"loss": 1.0})])
def test_without_the_figure_nothing_is_the_best(
    tmp_path: Path, best: str | None, figures: dict[str, float]
) -> None:
    checkpoints = checkpoints_in(tmp_path, SaveConfig(best=best))
    assert not checkpoints.store.would_be_best(figures)
    checkpoints.store.close()


def test_progress_that_this_version_does_not_know_is_refused(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    store = CheckpointStore(tmp_path / "new", ranks=Ranks.single())
    store.save(
        step=1,
        samples_seen=8,
        fragments=[],
        facts={"kind": "finetune", "data": {}, "progress": {"samples_seen": 8, "best_top1": 0.5}},
    )
    store.close()
    with pytest.raises(UserError, match=r"step-00000001: was written by another version .*'best_top1'"):
        checkpoints.resume()
    checkpoints.store.close()


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        ({"kind": "pretrain"}, "was written by pretrain, not by finetune"),
        ({"kind": "finetune", "group_images": 8}, "norm.group_images is None, but the run began with 8"),
    ],
)
def test_a_run_does_not_go_on_from_another_kind_or_other_groups(
    tmp_path: Path, facts: dict[str, Any], refusal: str
) -> None:
    checkpoints = checkpoints_in(tmp_path)
    store = CheckpointStore(tmp_path / "new", ranks=Ranks.single())
    store.save(step=1, samples_seen=8, fragments=[], facts={**facts, "data": {}, "progress": {}})
    store.close()
    with pytest.raises(UserError, match=refusal):
        checkpoints.resume()
    checkpoints.store.close()


def test_a_save_by_the_clock_falls_due_again_so_long_after_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 1000.0}
    monkeypatch.setattr("coatnet.training.checkpoints.time", SimpleNamespace(monotonic=lambda: clock["now"]))
    by_clock = checkpoints_in(tmp_path / "clock", SaveConfig(every="10 minutes"))
    by_steps = checkpoints_in(tmp_path / "steps", SaveConfig(every="1 steps"))
    due = []
    for clock["now"] in (1000.0, 1599.0, 1600.0):
        due.append(by_clock.time_is_up)
    by_clock.save(RunState(step=1))
    assert [*due, by_clock.time_is_up, by_steps.time_is_up] == [False, False, True, False, False]
    for checkpoints in (by_clock, by_steps):
        checkpoints.store.close()


def test_a_run_is_done_only_with_its_last_state_saved_and_goes_back_only_to_what_is_there(
    tmp_path: Path,
) -> None:
    checkpoints, state = checkpoints_in(tmp_path), RunState(step=1)
    with pytest.raises(UserError, match="of step 1, could not be saved"):
        checkpoints.require(state)
    assert not checkpoints.reach_before(2) and checkpoints.newest_path() is None
    checkpoints.save(state)
    assert checkpoints.reach_before(2) and not checkpoints.reach_before(1)
    checkpoints.require(state)
    assert checkpoints.newest_path() == checkpoints.store.path(1)
    with pytest.raises(UserError, match="no checkpoint from before step 1 to go back to"):
        checkpoints.restore(before=1)
    checkpoints.store.close()
