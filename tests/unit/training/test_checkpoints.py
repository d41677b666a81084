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
