"""What excuses that no step gets done: one rank waits for its batch, and some rank fetches."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from coatnet.runtime.data_wait import FETCHES, WAITS, DataWait
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.stop import StopFlag
from coatnet.runtime.watchdog import Watchdog

WAITING, FETCHING = {WAITS: "rank 1 waits"}, {FETCHES: "http://x/a.tar: no answer"}
EXCUSE = "rank 1 waits: http://x/a.tar: no answer"


def looks(*waits: DataWait, times: int) -> list[str | None]:
    """Let the ranks look so often, each time with the words of all before it; return the last answers."""
    found: list[str | None] = []
    for _ in range(times):
        found = [wait.excuse() for wait in waits]
        for wait in waits:
            wait._thread.join()
    return found


@pytest.fixture
def together() -> Any:
    """Return what makes a rank for each of some words, all with one mailbox."""
    mailbox = HashStore()
    return lambda *words: [
        DataWait(
            Ranks(rank, len(words), distributed=True, mailbox=mailbox), lambda own=own: own, stop=StopFlag()
        )
        for rank, own in enumerate(words)
    ]


def test_all_ranks_hear_that_one_waits_for_what_it_fetches(together: Any) -> None:
    ranks = together({}, WAITING | FETCHING, {})
    assert looks(*ranks, times=2) == [None] * 3
    assert looks(*ranks, times=2) == [EXCUSE] * 3


def test_one_rank_may_wait_for_what_another_fetches(together: Any) -> None:
    assert looks(*together(FETCHING, WAITING), times=4) == [EXCUSE] * 2


@pytest.mark.parametrize("words", [WAITING, FETCHING], ids=["waits alone", "fetches ahead"])
def test_neither_a_loader_that_hangs_nor_files_fetched_ahead_are_an_excuse(words: Any, together: Any) -> None:
    assert looks(*together({}, words), times=6) == [None] * 2


def test_words_of_a_rank_that_has_stopped_since_are_no_excuse(together: Any) -> None:
    here, stopped = together({}, WAITING | FETCHING)
    looks(stopped, times=3)
    assert looks(here, times=6) == [None]
    looks(stopped, times=1)
    looks(here, times=1)
    assert looks(here, times=1) == [EXCUSE]
    here.forget()
    assert looks(here, times=6) == [None]


def test_a_stop_that_one_rank_was_told_reaches_the_one_that_waits_for_its_batch(together: Any) -> None:
    told, waits, other = together({}, WAITING | FETCHING, {})
    looks(told, waits, other, times=2)
    assert not any(wait._stop.requested for wait in (told, waits, other))
    told._stop.request("SIGTERM")
    looks(told, times=1)
    looks(waits, times=1)  # they speak at once where they look together
    assert waits._stop.reason == "SIGTERM" and not other._stop.requested, "it has not looked yet"
    looks(other, times=1)
    assert other._stop.reason == "SIGTERM"


def test_a_mailbox_that_does_not_answer_keeps_nobody_waiting() -> None:
    let_go = threading.Event()

    class Hanging:
        def check(self, keys: list[str]) -> bool:
            let_go.wait(60)
            return False

    wait = DataWait(Ranks(0, 2, distributed=True, mailbox=Hanging()), dict, stop=StopFlag())
    first = (wait.excuse(), wait._thread)
    assert (wait.excuse(), wait._thread) == first, "no second thread beside one that hangs"
    assert wait._thread.daemon, "the process may end meanwhile"
    let_go.set()


def test_where_the_mailbox_is_gone_nothing_is_heard_and_nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    stacks: list[object] = []
    monkeypatch.setattr(threading, "excepthook", stacks.append)
    assert looks(DataWait(Ranks(0, 2, distributed=True, mailbox=Gone()), dict, stop=StopFlag()), times=2) == [
        None
    ]
    assert not stacks


def test_a_rank_alone_is_excused_by_its_own_words() -> None:
    assert looks(DataWait(Ranks(), lambda: WAITING | FETCHING, stop=StopFlag()), times=2) == [EXCUSE]
    assert looks(DataWait(Ranks(), lambda: WAITING, stop=StopFlag()), times=2) == [None]


@pytest.mark.parametrize(("hang_seconds", "doubts"), [(30.0, 10.0), (math.inf, 30.0)])
def test_the_watchdog_counts_anew_while_a_rank_waits_and_says_so_once(
    tmp_path: Path, hang_seconds: float, doubts: float
) -> None:
    words, said = dict(WAITING | FETCHING), list[str]()
    wait = DataWait(Ranks(), lambda: words, stop=StopFlag())
    watchdog = Watchdog(
        tmp_path / "stacks", hang_seconds=hang_seconds, start_seconds=1800.0, data_wait=wait, say=said.append
    )
    for _ in range(3):
        assert not watchdog._is_excused(wait, doubts - 1)
        assert not watchdog._is_excused(wait, doubts + 1)
        wait._thread.join()
        assert watchdog._is_excused(wait, doubts + 2)
        wait._thread.join()  # it has asked once more, for what was before
    assert said == [f"no step for {doubts + 2:.0f} s, since {EXCUSE}"]
    words.clear()
    assert not watchdog._is_excused(wait, 1.0)
    assert not any(watchdog._is_excused(wait, doubts + 2) for _ in range(3))
