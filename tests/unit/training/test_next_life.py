"""What a life of a run takes over from those before it, and what it does beside other ranks."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the test tree is no package; its modules import each other

from tiny_stage import BATCH, TOTAL, Positions, TinyRun

from coatnet.checkpoint.reader import Checkpoint
from coatnet.runtime.lease import Lease
from coatnet.runtime.lives import add_up, read_lives
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory, read_lines
from coatnet.runtime.stop import Stopped
from coatnet.training.calendar import Phase
from coatnet.training.loop import train_to_end
from coatnet.training.recorder import LEAVE
from coatnet.training.state import RunState

Begin = Callable[..., TinyRun]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Begin a life in one folder, which draws no pictures."""
    monkeypatch.setattr("coatnet.runtime.metrics_log.MetricsLog._show", lambda *_: None)
    monkeypatch.setattr("coatnet.training.recorder.Recorder._draw", lambda *_: None)
    begun: list[TinyRun] = []

    def new(**options: Any) -> TinyRun:
        Lease.acquire(tmp_path / "run").release()  # lives are numbered by its epochs
        begun.append(TinyRun(tmp_path / "run", **options))
        return begun[-1]

    yield new
    for run in begun:
        run.watchdog.stop()
        run.account.close()


@pytest.fixture
def died(begin: Begin) -> RunDirectory:
    """A run that saved step 4, took step 5 and died in step 6."""

    def die(run: TinyRun) -> None:
        raise RuntimeError("a rank was lost")

    run = begin(happens={6: die})
    with pytest.raises(RuntimeError, match="a rank was lost"):
        train_to_end(run)
    return run.run


@pytest.mark.parametrize("lost", ["metrics.jsonl", "account"])
def test_work_is_done_again_if_the_metrics_or_the_accounts_say_that_it_was_done(
    died: RunDirectory, begin: Begin, lost: str
) -> None:
    place = died.path / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    run = begin()
    train_to_end(run)
    assert run.noted[:2] == ["step 5 redone", "step 6"]


def test_the_last_record_of_the_account_is_of_all_lives(died: RunDirectory, begin: Begin) -> None:
    train_to_end(begin())
    *_, last = [row for row in read_lines(died.metrics) if "account/idle" in row]
    lives = read_lives(died.account)
    assert len(lives) == 2 and last["samples_seen"] == TOTAL
    spent = add_up(lives)
    idle = spent.pop("idle")  # what comes behind the record is nothing else
    for name, seconds in spent.items():
        assert last[f"account/{name}"] == pytest.approx(seconds, abs=0.01), name
    assert last["account/idle"] <= idle + 0.01


@pytest.mark.parametrize(("left_out", "compared"), [(39, False), (40, True)])
def test_a_loss_is_not_compared_with_one_of_samples_that_were_left_out_since_then(
    died: RunDirectory, begin: Begin, monkeypatch: pytest.MonkeyPatch, left_out: int, compared: bool
) -> None:
    monkeypatch.setattr(Positions, "next_excluded", lambda stream, position: left_out)
    train_to_end(begin())
    assert ("loss_continuity" in [event["kind"] for event in died.read_events()]) is compared


def test_a_checkpoint_tells_the_size_of_the_images_that_its_last_step_saw(begin: Begin) -> None:
    run = begin()
    run.calendar = replace(
        run.calendar, phases=[Phase(0, 4 * BATCH, BATCH, 4), Phase(4 * BATCH, TOTAL, BATCH, 8)]
    )
    train_to_end(run)
    sizes = {
        step: Checkpoint(run.checkpoints.store.path(step)).facts["progress"]["image_size"] for step in (4, 6)
    }
    assert sizes == {4: 4, 6: 8}


def test_each_step_is_a_beat_for_the_watchdog(begin: Begin) -> None:
    run = begin()
    train_to_end(run)
    assert run.watchdog._beats == 8


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_signal_in_the_start_raises_on_a_rank_alone_and_not_where_others_would_wait_for_it(
    begin: Begin, world_size: int
) -> None:
    run = begin()
    run.ranks = Ranks(world_size=world_size)
    ended = False
    try:
        with run.stoppable():
            run._stop._handle(signal.SIGTERM, None)
    except Stopped:
        ended = True
    assert ended is (world_size == 1) and run.is_told()


def test_who_leaves_takes_a_blank_share_of_the_step_that_is_refused(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = dict[str, Any]()
    run = begin()
    assert run.leave(RunState()) is None, "alone there is no step to take part in"
    run.ranks = Ranks(world_size=2)
    monkeypatch.setattr(run, "take", lambda state, batch, **how: taken.update(images=batch.images, **how))
    run.leave(RunState())
    assert tuple(taken.pop("images").shape) == (BATCH // 2, 4, 4, 3)
    assert taken == {"wish": LEAVE, "refused": True}
