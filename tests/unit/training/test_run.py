"""What all ranks do together between two steps."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from coatnet.runtime.data_wait import WAITS
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
from coatnet.runtime.stop import StopFlag
from coatnet.training.run import TrainingRun
from pretrain.state import State
from pretrain.trainer import PretrainResult


def test_what_is_no_step_is_over_when_all_ranks_are_done_and_until_then_they_are_patient(
    tmp_path: Path,
) -> None:
    met: list[tuple[int, bool]] = []

    class Meeting(Ranks):
        def barrier(self, *, timeout_seconds: float | None = None) -> None:
            met.append((run.watchdog._held, run.account.counting == "checkpoint"))

    run: TrainingRun[State, PretrainResult] = TrainingRun(
        RunDirectory(tmp_path), ranks=Meeting(), stop=StopFlag()
    )
    with run.patience("checkpoint"):
        assert not met
    assert met == [(1, True)]
    assert run.watchdog._held == 0 and not run.watchdog._lenient
    run.watchdog.stop()
    run.account.close()


@pytest.mark.parametrize(
    ("given", "alone", "bounds"),
    [
        ({}, True, (math.inf, math.inf)),
        ({}, False, (600.0, 3600.0)),
        ({"hang_seconds": 7.0}, True, (7.0, math.inf)),
        ({"start_seconds": 90.0}, False, (600.0, 90.0)),
    ],
)
def test_a_rank_alone_hangs_never_unless_a_config_says_after_how_long(
    tmp_path: Path, given: dict[str, float], alone: bool, bounds: tuple[float, float]
) -> None:
    class Main(Ranks):
        def broadcast(self, value: Any) -> Any:
            return value

    run: TrainingRun[State, PretrainResult] = TrainingRun(
        RunDirectory(tmp_path), ranks=Main(distributed=not alone), stop=StopFlag(), **given
    )
    assert (run.watchdog._hang_seconds, run.watchdog._start_seconds) == bounds
    run.watchdog.stop()
    run.account.close()


def test_a_rank_that_was_told_to_stop_asks_nobody_to_wait_for_its_data(tmp_path: Path) -> None:
    stop = StopFlag()
    run: TrainingRun[State, PretrainResult] = TrainingRun(RunDirectory(tmp_path), ranks=Ranks(), stop=stop)
    run.stream = SimpleNamespace(excuses=lambda: {WAITS: "rank 0 waits"})  # type: ignore[assignment]
    assert run.excuses() == {WAITS: "rank 0 waits"}
    stop.request("SIGUSR1")
    assert run.excuses() == {}
    run.watchdog.stop()  # it would answer the stop into another test
    run.account.close()


class Voice(Ranks):
    """A rank whose words are kept."""

    said: ClassVar[list[str]] = []
    spoke = threading.Event()

    def say(self, text: str) -> None:
        self.said.append(text)
        self.spoke.set()


def test_a_stop_that_takes_long_says_what_it_waits_for_and_the_same_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatnet.runtime.watchdog._POLL_SECONDS", 0.01)
    stop, said = StopFlag(), Voice.said
    run: TrainingRun[State, PretrainResult] = TrainingRun(RunDirectory(tmp_path), ranks=Voice(), stop=stop)
    stop.request("SIGINT")
    stop.asked_at -= 6.0
    assert Voice.spoke.wait(60.0), "the run is not there yet"
    run.watchdog.start()
    run.watchdog.stop()
    assert [text.rpartition("after ")[2] for text in said] == ["the start"]
    run.account.started()

    def looks(name: str) -> None:
        with run.account.measure(name):
            run._answer()
            run._answer()

    stop.asked_at += 6.0
    looks("evaluation")
    assert len(said) == 1, "it may be over in no time"
    stop.asked_at -= 6.0
    for name in ("evaluation", "idle", "compute", "communication", "data_wait", "checkpoint", "compute"):
        looks(name)
    assert [text.rpartition("after ")[2] for text in said[1:]] == [
        "the evaluation under way",
        "the step under way",
        "the save under way",
    ]
    assert all(text.startswith("SIGINT: ") for text in said)
    run.account.close()
