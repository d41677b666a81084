"""Which class a second belongs to, on a clock that is set by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coatnet.runtime.account import TimeAccount
from coatnet.runtime.lives import CLASSES, read_lives


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def counted(account: TimeAccount) -> dict[str, float]:
    return {name: seconds for name, seconds in account.seconds().items() if seconds}


def test_every_second_belongs_to_the_innermost_class_that_runs(tmp_path: Path, clock: Clock) -> None:
    account = TimeAccount(tmp_path, rank=0, life=1)
    clock.go(1)
    account.started()
    clock.go(2)
    with account.measure("compute"):
        clock.go(4)
        with account.measure("data_wait"):
            assert account.counting == "data_wait"
            clock.go(8)
        clock.go(16)
    with account.measure("checkpoint"):
        clock.go(32)
    clock.go(64)
    assert counted(account) == {"start": 1, "idle": 66, "compute": 20, "data_wait": 8, "checkpoint": 32}


def test_a_class_ends_with_its_block_however_that_ends(tmp_path: Path, clock: Clock) -> None:
    account = TimeAccount(tmp_path, rank=0, life=1)
    with pytest.raises(KeyError), account.measure("evaluation"):
        clock.go(1)
        raise KeyError
    clock.go(2)
    assert counted(account) == {"start": 2, "evaluation": 1}


def test_a_class_inside_another_counts_only_there(tmp_path: Path, clock: Clock) -> None:
    account = TimeAccount(tmp_path, rank=0, life=1)
    for outer in ("redone", "compute"):
        with account.measure(outer), account.measure("communication", inside="compute"):
            clock.go(1)
        clock.go(2)
    assert counted(account) == {"start": 4, "redone": 1, "communication": 1}
    inner = account.measure("communication", inside="compute")
    with account.measure("compute"), account.measure("checkpoint"), inner:
        clock.go(8)
    assert counted(account)["checkpoint"] == 8, "nor where it only runs further out"


def test_what_is_known_later_is_shifted_and_no_more_than_there_is(tmp_path: Path, clock: Clock) -> None:
    account = TimeAccount(tmp_path, rank=0, life=1)
    with account.measure("compute"):
        clock.go(5)
        account.shift(3, source="compute", target="communication")
        assert counted(account) == {"compute": 2, "communication": 3}
        account.shift(9, source="communication", target="redone")
    assert counted(account) == {"compute": 2, "redone": 3}


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "account").touch()  # a file where the folder should be
    account = TimeAccount(tmp_path / "account", rank=0, life=1)
    account.flush(samples_seen=8)
    (tmp_path / "account").unlink()
    clock.go(7)
    account.flush(samples_seen=16)
    (life,) = read_lives(tmp_path / "account")
    assert (life.samples_seen, life.ended - life.began) == (16, pytest.approx(7))
    assert life.seconds == {**dict.fromkeys(CLASSES, 0.0), "start": 7.0}


def test_time_in_which_a_rank_was_stopped_is_taken_from_what_it_was_at_then(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, absent = TimeAccount(tmp_path, rank=0, life=1), iter([0.0, 8.0])
    account.started()
    spans = iter([("compute", 100.0), ("evaluation", 10.0)])

    def passes(seconds: float) -> bool:
        """Let the keeper look after each span, and end."""
        name, seconds = next(spans, ("", 0.0))
        if name:
            with account.measure(name):
                clock.go(seconds)
        return not name

    monkeypatch.setattr(account._closed, "wait", passes)
    monkeypatch.setattr("coatnet.runtime.absence.Absence.seconds", lambda absence: next(absent))
    account._keep()
    assert counted(account) == {"compute": 100, "evaluation": 2, "idle": 8}
