"""The classes of the time account add up to wall time, over restarts and kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from coatnet.runtime.account import TimeAccount, process_age_seconds
from coatnet.runtime.lease import Lease
from coatnet.runtime.lives import CLASSES, LifeAccount, add_up, between_seconds, read_lives
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory

# A life that computes, writes its totals, goes on a little and is killed before it writes them again.
KILLED_LIFE = """
import os, signal, sys, time
from pathlib import Path
from coatnet.runtime.account import TimeAccount, process_age_seconds
account = TimeAccount(Path(sys.argv[1]), rank=0, life=int(sys.argv[2]), age_seconds=process_age_seconds())
account.started()
with account.measure("compute"):
    time.sleep(0.2)
account.flush(samples_seen=8)
time.sleep(0.15)  # a process knows its age to a tick of 0.01 s
os.kill(os.getpid(), signal.SIGKILL)
"""

# A life that evaluates for ever, and keeps its account at a quicker pace.
EVALUATING_LIFE = """
import sys, threading
from coatnet.runtime import absence, account
from coatnet.runtime.ranks import Ranks
from coatnet.runtime.run_directory import RunDirectory
absence._LEAST_SECONDS, account._FLUSH_SECONDS = 0.5, 0.05
own = account.TimeAccount.of_run(RunDirectory(sys.argv[1]), ranks=Ranks())
own.started()
with own.measure("evaluation"):
    threading.Event().wait()
"""


@pytest.mark.slow
def test_a_life_that_is_killed_in_its_evaluation_leaves_how_long_that_and_its_being_stopped_took(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen([sys.executable, "-c", EVALUATING_LIFE, str(tmp_path)])

    def wait_for(name: str, seconds: float) -> LifeAccount:
        while True:
            lives = read_lives(tmp_path / "account")
            if lives and lives[0].seconds[name] > seconds:
                return lives[0]
            assert process.poll() is None
            time.sleep(0.01)

    evaluating = wait_for("evaluation", 0.2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    stopped = wait_for("idle", 1.0)
    process.kill()
    process.wait()
    assert stopped.ended - stopped.began == pytest.approx(sum(stopped.seconds.values()), abs=0.01)
    assert evaluating.seconds["idle"] < stopped.seconds["idle"]


def test_a_clock_that_is_set_back_during_a_life_does_not_part_the_classes_from_wall_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = TimeAccount(tmp_path, rank=0, life=1, age_seconds=2.0)
    before = time.time()
    monkeypatch.setattr(time, "time", lambda: before - 3600)
    account.flush(samples_seen=0)
    (life,) = read_lives(tmp_path)
    assert sum(life.seconds.values()) == pytest.approx(life.ended - life.began, abs=0.01)
    assert 2.0 <= life.ended - life.began < 60


def test_a_clock_that_is_set_back_between_lives_changes_neither_their_order_nor_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    for life, set_by in ((1, 0.0), (2, -3600.0), (3, -3500.0)):
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda by=set_by: clock() + by)
            TimeAccount(tmp_path, rank=0, life=life, age_seconds=50.0).flush(samples_seen=10 * life)
    lives = read_lives(tmp_path)
    assert [(one.life, one.samples_seen) for one in lives] == [(1, 10), (2, 20), (3, 30)]
    assert sum(add_up(lives).values()) == pytest.approx(lives[-1].ended - lives[0].began, abs=0.01)
    assert 150 <= lives[-1].ended - lives[0].began < 300


def test_nested_classes_add_up_to_wall_time_within_one_percent(tmp_path: Path) -> None:
    began = time.monotonic()
    account = TimeAccount(tmp_path, rank=0, life=1)
    there = time.monotonic()
    account.started()
    for _ in range(20):
        with account.measure("compute"):
            time.sleep(0.003)
            with account.measure("data_wait"):
                time.sleep(0.002)
        with account.measure("checkpoint"):
            time.sleep(0.001)
    least = time.monotonic() - there
    seconds = account.seconds()
    most = time.monotonic() - began
    assert 0.99 * least < sum(seconds.values()) < 1.01 * most
    assert seconds["data_wait"] >= 0.04 and seconds["compute"] >= 0.06


@pytest.mark.slow
def test_killed_lives_and_the_time_between_them_add_up_to_wall_time(tmp_path: Path) -> None:
    for life in (1, 2):
        command = [sys.executable, "-c", KILLED_LIFE, str(tmp_path), str(life)]
        assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    lives = read_lives(tmp_path)
    assert [one.life for one in lives] == [1, 2]
    total, wall = add_up(read_lives(tmp_path)), lives[1].ended - lives[0].began
    assert abs(sum(total.values()) - wall) < 0.01 * wall
    assert total["compute"] >= 0.4 and total["start"] > 0
    assert total["idle"] >= between_seconds(lives) >= 0.1


def test_lives_are_added_and_ranks_averaged(tmp_path: Path) -> None:
    for life in (1, 2):
        for rank in (0, 1):
            account = TimeAccount(tmp_path, rank=rank, life=life)
            account._seconds["compute"] = 10.0 + rank
            account.flush(samples_seen=1)
            account._seconds["compute"] = 20.0 + rank
            account.flush(samples_seen=2)
    total = add_up(read_lives(tmp_path))
    assert set(total) == set(CLASSES)
    assert total["compute"] == pytest.approx(41.0, abs=0.01)


def row(life: int, *, began: float, ended: float, samples_seen: int, compute: float) -> str:
    seconds = {**dict.fromkeys(CLASSES, 0.0), "compute": compute}
    found = {"life": life, "began": began, "ended": ended, "samples_seen": samples_seen, "seconds": seconds}
    return json.dumps(found, separators=(",", ":")).ljust(511) + "\n"


def test_a_life_is_the_mean_of_its_ranks_and_they_come_in_their_order(tmp_path: Path) -> None:
    second = row(2, began=30.0, ended=40.0, samples_seen=30, compute=4.0)
    (tmp_path / "rank-00000.jsonl").write_text("torn".ljust(511) + "\n" + second)
    (tmp_path / "rank-00001.jsonl").write_text(
        row(1, began=10.0, ended=20.0, samples_seen=10, compute=8.0)
        + row(2, began=32.0, ended=44.0, samples_seen=20, compute=6.0)
    )
    first, last = read_lives(tmp_path)
    assert (first.life, first.began, first.ended, first.seconds["compute"]) == (1, 10.0, 20.0, 8.0)
    assert (last.life, last.began, last.ended, last.seconds["compute"]) == (2, 31.0, 42.0, 5.0)
    assert last.samples_seen == 30
    total = add_up(read_lives(tmp_path))
    assert (total["compute"], total["idle"]) == (13.0, 11.0)


def test_the_file_does_not_grow_with_the_time_and_survives_a_torn_line(tmp_path: Path) -> None:
    account = TimeAccount(tmp_path, rank=3, life=1)
    for seen in range(50):
        account.flush(samples_seen=seen)
    file = tmp_path / "rank-00003.jsonl"
    once = file.stat().st_size
    with file.open("ab") as torn:
        torn.write(b'{"life":2,"ra')
    TimeAccount(tmp_path, rank=3, life=2).flush(samples_seen=60)
    assert file.stat().st_size == 3 * once
    assert [(life.life, life.samples_seen) for life in read_lives(tmp_path)] == [(1, 49), (2, 60)]


def live(run: RunDirectory, *, rank: int, world_size: int, samples_seen: int) -> TimeAccount:
    class Rank(Ranks):
        def broadcast(self, value: Any) -> Any:
            told.append(value)
            return told[0]

    account = TimeAccount.of_run(run, ranks=Rank(rank=rank, world_size=world_size))
    account._seconds["compute"] = 10.0 + rank
    account.reached(samples_seen)
    account.close()
    return account


told: list[Any] = []


def test_lives_of_many_ranks_are_read_as_one_line_each_and_the_ranks_files_do_not_grow(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path)
    for life, world_size in enumerate((3, 2, 2), start=1):
        lease = Lease.acquire(tmp_path)
        told.clear()
        for rank in range(world_size):
            live(run, rank=rank, world_size=world_size, samples_seen=8 * life)
        lease.release()
    sizes = {file.name: file.stat().st_size for file in sorted(run.account.glob("rank-*"))}
    # That of the third rank is the first life's still.
    assert set(sizes.values()) == {512} and len(sizes) == 3
    lives = read_lives(run.account)
    assert [(one.life, one.samples_seen) for one in lives] == [(1, 8), (2, 16), (3, 24)]
    assert [one.seconds["compute"] for one in lives] == [11.0, 10.5, 10.5]
    assert len((run.account / "earlier.jsonl").read_text().splitlines()) == 2


def test_where_the_means_find_no_room_the_ranks_files_keep_every_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coatnet.runtime.lives.write_atomically", full)
    for life in (1, 2):
        lease = Lease.acquire(tmp_path)
        told.clear()
        live(RunDirectory(tmp_path), rank=0, world_size=1, samples_seen=8 * life)
        lease.release()
    assert [one.samples_seen for one in read_lives(tmp_path / "account")] == [8, 16]


def test_a_frozen_rank_that_comes_back_writes_nothing_over_its_successors_totals(tmp_path: Path) -> None:
    frozen = TimeAccount(tmp_path, rank=0, life=1, anew=True)
    frozen.flush(samples_seen=8)
    TimeAccount(tmp_path, rank=0, life=2, anew=True).flush(samples_seen=16)
    frozen.flush(samples_seen=9)
    assert [(life.life, life.samples_seen) for life in read_lives(tmp_path)] == [(2, 16)]


def test_a_thousand_ranks_together_write_no_more_often_than_the_file_system_bears(tmp_path: Path) -> None:
    told[:] = [(1, True)]
    account = live(RunDirectory(tmp_path), rank=1, world_size=1024, samples_seen=8)
    assert account._flush_seconds == 32.0
    assert live(RunDirectory(tmp_path), rank=1, world_size=8, samples_seen=8)._flush_seconds == 2.0


def test_writing_for_a_week_keeps_no_file_open(tmp_path: Path) -> None:
    account = TimeAccount(tmp_path, rank=0, life=1)
    account.flush(samples_seen=0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for seen in range(20):
        account.flush(samples_seen=seen)
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 20


@pytest.mark.parametrize(
    "changes",
    [
        {"life": "a"}, {"seconds": 3}, {"seconds": {}}, {"seconds": dict.fromkeys(CLASSES)}, {"began": None},
        {"ended": "x"}, {"samples_seen": []},
    ],
)  # fmt: skip
def test_a_line_that_is_no_total_is_passed_over(changes: dict[str, Any], tmp_path: Path) -> None:
    TimeAccount(tmp_path, rank=0, life=1).flush(samples_seen=8)
    TimeAccount(tmp_path, rank=0, life=2).flush(samples_seen=16)
    file = tmp_path / "rank-00000.jsonl"
    first, second = file.read_text().splitlines()
    odd = json.dumps({**json.loads(second), **changes}, separators=(",", ":"))
    assert len(odd) <= len(second)
    file.write_text(f"{first}\n{odd.ljust(len(second))}\n")
    assert [life.samples_seen for life in read_lives(tmp_path)] == [8]


def test_what_a_process_spent_before_its_account_is_part_of_the_start(tmp_path: Path) -> None:
    assert 0 < process_age_seconds() < time.clock_gettime(time.CLOCK_BOOTTIME)
    before = time.time()
    account = TimeAccount(tmp_path, rank=0, life=1, age_seconds=5.0)
    after = time.time()
    assert account.seconds()["start"] >= 5.0
    account.flush(samples_seen=0)
    (life,) = read_lives(tmp_path)
    assert life.ended - life.began == pytest.approx(sum(life.seconds.values()), abs=0.01)
    assert before - 5.001 <= life.began <= after - 4.999


def test_a_runs_account_is_numbered_by_its_lease_and_ends_with_what_was_reached(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    account = TimeAccount.of_run(RunDirectory(tmp_path), ranks=Ranks())
    assert account.life == lease.epoch == 1
    assert [life.samples_seen for life in read_lives(tmp_path / "account")] == [0]
    account.reached(16)
    account.close()
    lease.release()
    (life,) = read_lives(tmp_path / "account")
    assert life.samples_seen == 16 and life.seconds["start"] > 0 == life.seconds["idle"]
    assert "account" not in {thread.name for thread in threading.enumerate()}
